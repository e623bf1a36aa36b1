"""``steelyard gate``: weighs a challenger's evaluation against a champion's, from two folders and a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from steelyard.cli._context import emit_json, print_table, registry_from
from steelyard.errors import ExitCode, GateRefusal

if TYPE_CHECKING:
    from steelyard.gate import Verdict

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("champion", type=_FOLDER)
@click.argument("challenger", type=_FOLDER)
@click.option("--policy", "policy_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Policy file (YAML or JSON).")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.pass_context
def command(ctx: click.Context, champion: Path, challenger: Path, policy_file: Path | None, as_json: bool) -> ExitCode:
    """Weigh CHALLENGER's evaluation folder against CHAMPION's; no model is needed.

    Exit code 0 only for `promote`, 1 for `reject` and `inconclusive`, 5 where the two cannot be weighed.
    """
    from steelyard.events import GateEvent
    from steelyard.gate import PolicyConfig, load_policy
    from steelyard.gate.refusals import refusal_to_json

    policy = load_policy(policy_file) if policy_file else PolicyConfig()
    registry = registry_from(ctx)
    weigh = registry.get("gate_policies", policy.policy).impl.load()
    try:
        verdict: Verdict = weigh(champion, challenger, policy)
    except GateRefusal as refusal:
        if as_json:
            emit_json(refusal_to_json(refusal))
        raise
    if verdict.promoted:
        event = GateEvent(None, str(policy.round), champion, challenger, verdict.to_json())
        verdict = verdict.with_objections(registry.objections(event))
    if as_json:
        emit_json(verdict)
    else:
        _show(verdict)
    return ExitCode.DONE if verdict.promoted else ExitCode.NOT_PROMOTED


def _show(verdict: Verdict) -> None:
    print(verdict.sentence)
    print()
    print_table(
        ("task", "n", "champion", "challenger", "difference", "lower", "upper", "margin", "status"),
        [
            (
                name,
                task.n,
                f"{task.champion:.4f}",
                f"{task.challenger:.4f}",
                f"{task.diff:+.4f}",
                _signed(task.lower),
                _signed(task.upper),
                "" if task.margin is None else f"{task.margin:g}",
                task.status or "",
            )
            for name, task in verdict.tasks.items()
        ],
    )


def _signed(value: Any) -> str:
    return "" if value is None else f"{value:+.4f}"
