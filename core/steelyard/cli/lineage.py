"""``steelyard lineage``: what a model was made from, as a tree."""

from __future__ import annotations

from pathlib import Path

import click

from steelyard.cli._context import console, emit_json

__all__ = ["command"]


@click.command("lineage")
@click.argument("place", metavar="MODEL_OR_RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print lineage.json.")
def command(place: Path, as_json: bool) -> None:
    """Show what a model (or the champion of a run) was made from: stages, data with its certificates, and the base."""
    from steelyard.run.lineage import branches, find_lineage
    from steelyard.run.view import find_run

    lineage = find_lineage(find_run(place))
    if as_json:
        emit_json(lineage)
        return
    from rich.text import Text
    from rich.tree import Tree

    trees: list[Tree] = []
    for branch in branches(lineage):
        label = Text.assemble((f"{branch.role}: ", "dim") if branch.role else "", (branch.title, "bold"), f" — {branch.facts}")
        del trees[branch.depth :]
        trees.append(Tree(label) if not trees else trees[-1].add(label))
    console().print(trees[0])
