"""``steelyard recipes``: the recipes that have names, what one says or means, and the JSON Schema for editors."""

from __future__ import annotations

from pathlib import Path

import click

from steelyard.cli._context import emit_json, print_table, registry_from, talk


@click.group()
def command() -> None:
    """List, show and describe recipes."""


@command.command("list", short_help="List the recipes that `steelyard run NAME` finds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the recipes that `steelyard run NAME` finds."""
    registry = registry_from(ctx)
    found = registry.all("recipes")
    if as_json:
        emit_json(
            [
                {"name": name, "summary": spec.summary, "path": spec.path, "plugin": registry.owner(spec).title}
                for name, spec in found.items()
            ]
        )
        return
    print_table(["recipe", "summary"], [(name, spec.summary) for name, spec in found.items()])
    talk(f"{len(found)} recipes; `steelyard recipes show NAME` prints one, `steelyard init` writes one to start from")


@command.command(short_help="Print a recipe, as written or resolved.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--resolved", is_flag=True, help="Print what it means, every default written out, as JSON.")
@click.option("--json", "as_json", is_flag=True, help="The same as --resolved.")
@click.pass_context
def show(ctx: click.Context, recipe: str, overrides: tuple[str, ...], resolved: bool, as_json: bool) -> None:
    """Print RECIPE, a name or a file; with overrides it is printed resolved. What is wrong with it is an error."""
    from steelyard.recipe import load_recipe

    loaded = load_recipe(recipe, overrides, registry_from(ctx))
    if resolved or as_json or overrides:
        emit_json(loaded.recipe.to_json())
    else:
        click.echo(loaded.text, nl=not loaded.text.endswith("\n"))


@command.command(short_help="Print the JSON Schema of recipes, for an editor's completion.")
@click.option("--suite", is_flag=True, help="The schema of suites.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a file instead.")
@click.option("--json", "as_json", is_flag=True, hidden=True)
@click.pass_context
def schema(ctx: click.Context, suite: bool, out: Path | None, as_json: bool) -> None:
    """Print the JSON Schema of recipes, with every plugin's keys, for an editor's completion.

    Put `# yaml-language-server: $schema=FILE` into a recipe's first line.
    """
    import json

    from steelyard.recipe import recipe_schema, suite_schema

    made = suite_schema() if suite else recipe_schema(registry_from(ctx), lambda message: talk(f"warning: {message}"))
    if out is None:
        emit_json(made)
        return
    out.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    talk(f"wrote {str(out)!r}")
