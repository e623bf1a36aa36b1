"""``steelyard init``: a recipe to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from steelyard.cli._context import emit_json, talk
from steelyard.errors import UsageError

_RECIPE = "recipe.yaml"


@click.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def command(folder: Path, as_json: bool) -> None:
    """Write a commented recipe into DIR (default: here). It runs as it is; change it line by line.

    A file that is there already is left alone.
    """
    text = (files("steelyard.cli") / "starter" / _RECIPE).read_text(encoding="utf-8")
    path = folder / _RECIPE
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{str(path)!r} is there already: give another folder, as in `steelyard init my-project`") from None
    if as_json:
        emit_json({"recipe": path})
    else:
        click.echo(path)
    talk(f"next: `steelyard plan {path}`, then `steelyard run {path}`")
