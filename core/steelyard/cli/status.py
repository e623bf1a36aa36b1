"""``steelyard status``: how far a run is, who holds it, what its gates decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from steelyard.cli._context import emit_json, print_table

if TYPE_CHECKING:
    from steelyard.run.ledger import StepRow
    from steelyard.run.view import RunView

__all__ = ["command"]


@click.command("status")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def command(run_dir: Path, as_json: bool) -> None:
    """Show how far the run in RUN_DIR is, a folder or the name of one in runs/. Takes no lock and changes nothing."""
    from steelyard.run.view import open_run

    with open_run(run_dir) as view:
        status = _status(view)
    if as_json:
        emit_json(status)
    else:
        _show(status)


def _status(view: RunView) -> dict[str, Any]:
    holder = view.holder
    promotions, champion, latest = view.promotions(), view.champion(), view.latest_steps()
    return {
        "run_dir": view.run_dir,
        "name": view.name,
        "holder": None if holder is None else {"pid": holder.pid, "host": holder.host, "since": holder.since, "command": holder.command},
        "champion": champion,
        "promotions": [{"round": row.round, "step": row.step, "key": row.key, "time": row.time} for row in promotions],
        "verdicts": [{"round": row.round, "decision": row.decision, "sentence": row.sentence} for row in view.verdicts()],
        "steps": [_step(row, held=holder is not None) for row in latest.values()],
        "failures": [
            {"step": row.step, "type": row.type, "message": row.message, "log": row.log}
            for row in view.failures()
            # What a step failed by before it was done is told by the report.
            if row.step not in latest or latest[row.step].status not in ("done", "reused")
        ],
    }


def _step(row: StepRow, *, held: bool) -> dict[str, Any]:
    # A step that began and has no end is running, or was killed with its conductor.
    status = row.status if row.status != "started" else "running" if held else "killed"
    return {"step": row.step, "kind": row.kind, "key": row.key, "status": status, "seconds": row.seconds, "time": row.time}


def _show(status: dict[str, Any]) -> None:
    from steelyard.run.progress import counted, duration

    holder = status["holder"]
    held = f"held by process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "nobody works on it"
    print(f"{status['name']} in {status['run_dir']}: {held}")
    print_table(
        ("step", "kind", "status", "time", "key"),
        [(s["step"], s["kind"], s["status"], duration(s["seconds"]) if s["seconds"] else "", s["key"][:12]) for s in status["steps"]],
    )
    for verdict in status["verdicts"]:
        print(f"{verdict['round']}: {verdict['sentence']}")
    for failure in status["failures"][-3:]:
        first = failure["message"].splitlines()[0] if failure["message"] else failure["type"]
        print(f"failed: {failure['step']}: {first}")
    if status["champion"] is not None:
        # Rows by which the title went back to a model it had left are no further promotions.
        promoted = {row["key"] for row in status["promotions"] if row["step"] != "base"}
        print(f"champion: {status['champion']} ({counted(len(promoted), 'promotion')})")
