"""``steelyard plan``: what would run, and what its gates can prove, before anything does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from steelyard.cli._context import emit_json, print_table, registry_from, talk
from steelyard.errors import VerifierError

if TYPE_CHECKING:
    from steelyard.plugins import Registry
    from steelyard.recipe.schema import Recipe
    from steelyard.run.outlook import FurtherLook, GateOutlook, Outlook, StepOutlook
    from steelyard.run.plan import Step

__all__ = ["command"]


@click.command("plan")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run folder to look for finished steps in (default: runs/<name>).")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.pass_context
def command(ctx: click.Context, recipe: str, overrides: tuple[str, ...], run_dir: Path | None, as_json: bool) -> None:
    """Show what RECIPE would run: steps, rows and disk where known, and for each guard the smallest difference that its items can show.

    KEY=VALUE changes a key of the recipe, such as `stages.sft.lr=1e-5`. A guard that an unchanged model would fail more often than not
    is refused, with the number of items or the margin it would need (exit 5)."""
    from steelyard.recipe import load_recipe, load_suite
    from steelyard.run.folder import choose_folder
    from steelyard.run.outlook import look_ahead
    from steelyard.run.plan import make_plan
    from steelyard.run.sandboxing import require_sandbox

    registry = registry_from(ctx)
    loaded = load_recipe(recipe, overrides, registry)
    plan = make_plan(loaded.recipe, registry, loaded.base)
    folder, _ = choose_folder(loaded, run_dir)
    dev = load_suite(loaded.recipe.suites["dev"], registry, loaded.base) if "dev" in loaded.recipe.suites else None
    outlook = look_ahead(loaded.recipe, plan, folder if folder.begun else None, loaded.base, dev)
    processes = _processes(loaded.recipe)
    shared = [step.id for step in plan.steps if processes > 1 and _is_shared(step, registry)]
    if as_json:
        launcher = {"kind": loaded.recipe.launcher.kind, "processes": processes, "shared": shared}
        emit_json({"recipe": loaded.recipe.name, "run_dir": folder.path, "launcher": launcher, **outlook.to_json()})
    else:
        _show(outlook, folder.path)
        if processes > 1:
            print(f"\nlauncher {loaded.recipe.launcher.kind}: {processes} processes share {', '.join(shared) or 'no step of this recipe'}")
    try:
        require_sandbox(plan, registry)
    except VerifierError as error:
        talk(f"warning: `steelyard run` will refuse: {error}")
    outlook.require_provable()


def _processes(recipe: Recipe) -> int:
    """How many the launcher starts for a step."""
    return int(getattr(recipe.launcher.options, "processes", 1))


def _is_shared(step: Step, registry: Registry) -> bool:
    return step.kind == "stage" and bool(registry.get("stages", step.config["kind"]).distributed)


def _show(outlook: Outlook, run_dir: Path) -> None:
    from steelyard.run.progress import counted

    print_table(("step", "kind", "key", "state", "known"), [_row(step) for step in outlook.steps])
    there = sum(step.there for step in outlook.steps)
    print(f"\n{counted(len(outlook.steps), 'step')}, {there} of them there already in {run_dir}")
    if any(not step.determined for step in outlook.steps):
        print("~ marks a key that holds if the gates before it promote")
    if any(step.after is not None for step in outlook.steps):
        print("'if needed' marks what a gate looks at again where it is inconclusive")
    if outlook.disk_bytes is not None:
        print(f"disk: about {_size(outlook.disk_bytes)} for models and checkpoints")
    for gate in outlook.gates:
        print()
        _show_gate(gate)


def _row(step: StepOutlook) -> tuple[str, ...]:
    known = [f"{value:,} {name}" for name, value in (("rows", step.rows), ("tokens", step.tokens)) if value is not None]
    known += [f"{step.optimiser_steps:,} optimiser steps"] if step.optimiser_steps is not None else []
    known += [f"{step.rollout_steps:,} rollout steps"] if step.rollout_steps is not None else []
    known += [f"{role.removeprefix('model:')} {source}" for role, source in step.inputs.items() if role.startswith("model:")]
    key = step.key[:12] if step.determined else f"~{step.key[:12]}"
    return step.id, step.kind, key, _state(step), ", ".join(known)


def _state(step: StepOutlook) -> str:
    return "there" if step.there else "to do" if step.after is None else "if needed"


def _show_gate(gate: GateOutlook) -> None:
    if gate.plan is None:
        names = ", ".join(map(repr, gate.unknown))
        why = f"the suite does not say how many items there are in {names} (`items:`)" if names else "its policy is a plugin's"
        print(f"gate of round {gate.round!r}: what it can prove is not known before the run: {why}")
        return
    plan = gate.plan
    print(
        f"gate of round {gate.round!r}: the average must rise by {100 * plan.average_detectable:.1f} points to be promoted with "
        f"{100 * plan.power:.0f} % chance (alpha {plan.average_alpha:.4g}); an unchanged model passes all guards "
        f"{100 * plan.pass_if_unchanged:.0f} % of the time"
    )
    for number, look in enumerate(gate.further_looks, start=2):
        _show_look(number, len(gate.further_looks) + 1, look)
    if not plan.guards:
        print("no task is guarded")
        return
    print_table(
        ("guard", "items", "margin", "detectable", "passes unchanged", ""),
        [
            (
                guard.task,
                f"{guard.n:,}",
                f"{100 * guard.margin:g} points",
                f"{100 * guard.detectable:.1f} points",
                f"{100 * guard.pass_if_unchanged:.0f} %",
                "cannot be proven" if guard.refusal else "",
            )
            for guard in plan.guards
        ],
    )


def _show_look(number: int, of: int, look: FurtherLook) -> None:
    """Every look has the same levels."""
    more = [f"{count:,} items of {name}" for name, count in look.items.items()]
    more += [f"{count} samples of each item of {name}" for name, count in look.samples.items()]
    line = f"look {number} of {of}, where the one before is inconclusive: {', '.join(more)}"
    if look.plan is not None:
        line += (
            f"; the average must rise by {100 * look.plan.average_detectable:.1f} points, an unchanged model passes all guards "
            f"{100 * look.plan.pass_if_unchanged:.0f} % of the time"
        )
        line += ", and what more samples are worth is not counted" if look.samples else ""
    print(line)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
