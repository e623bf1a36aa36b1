"""``steelyard report``: writes a run's HTML report."""

from __future__ import annotations

from pathlib import Path

import click

from steelyard.cli._context import emit_json, talk
from steelyard.errors import UsageError

__all__ = ["command"]


@click.command("report")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The file to write (default: RUN_DIR/report.html).")
@click.option("--json", "as_json", is_flag=True, help="Print the path and the sections as JSON.")
def command(run_dir: Path, out: Path | None, as_json: bool) -> None:
    """Write the report of the run in RUN_DIR: one HTML file that needs no network. The run may still be going on."""
    from steelyard.run.view import find_run

    run_dir = find_run(run_dir)
    if not run_dir.is_dir():
        raise UsageError(f"no run folder at {str(run_dir)!r}")
    from steelyard.report.page import REPORT_NAME, render_report, save

    report = render_report(run_dir)
    path = out if out is not None else run_dir / REPORT_NAME
    save(report, path)
    for problem in report.problems:
        talk(f"warning: {problem}")
    if as_json:
        emit_json({"path": str(path), "sections": list(report.sections), "problems": list(report.problems)})
    else:
        print(path)
