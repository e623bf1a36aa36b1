"""``steelyard decontaminate``: removes training rows that hold items of a suite, and says which and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from steelyard.cli._context import emit_json, print_table, registry_from, talk
from steelyard.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from steelyard.decontaminate import FileCleaning
    from steelyard.plugins import Registry


@click.command()
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--against", required=True, multiple=True, metavar="SUITE_OR_FILE", help="A suite, or a JSON-lines file of items; repeatable."
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write; DATA's name and `.decontaminated` unless given."
)
@click.option("--ngram", default=8, show_default=True, help="Words of an n-gram.")
@click.option("--coverage", default=0.5, show_default=True, help="Share of an item's words above which a row holds it.")
@click.option("--max-overlap", default=0.02, show_default=True, help="Share of a task's items above which the data is contaminated for it.")
@click.option("--min-words", default=3, show_default=True, help="Items of fewer words match only a whole text.")
@click.option(
    "--action",
    type=click.Choice(["remove", "refuse", "report"]),
    default="remove",
    show_default=True,
    help="What a match means; see above.",
)
@click.option("--reason", help="Why matched rows may stay; --action report needs it.")
@click.option("--json", "as_json", is_flag=True, help="Print the totals as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    data: Path,
    against: tuple[str, ...],
    out: Path | None,
    ngram: int,
    coverage: float,
    max_overlap: float,
    min_words: int,
    action: Any,
    reason: str | None,
    as_json: bool,
) -> ExitCode:
    """Scan DATA (JSON lines or Parquet) for the items of a suite or a file, by the Tülu 3 rule.

    Writes report.json, certificate.json and the clean copy. A file of items has lines {"id", "text"} or {"id", "fields": {...}}.

    --action remove leaves matched rows out. refuse does so too, but where DATA holds more than --max-overlap of a task's items it is
    refused as a whole and no copy is written (exit code 5). report leaves every row in; the certificate then tells your --reason.
    """
    if action == "report" and not (reason and reason.strip()):
        raise UsageError("--action report leaves matched rows in the data: say why with --reason TEXT")
    if action != "report" and reason:
        raise UsageError(f"--reason is why matched rows may stay, and --action {action} takes them out: take one of the two back")
    from steelyard.decontaminate import ItemIndex, Rule, clean_file, read_documents

    items: list[Any] = []
    suites: dict[str, str] = {}
    for ref in against:
        found, version = _items(ref, registry_from(ctx))
        items.extend(found)
        suites[ref] = version
    index = ItemIndex.build(items, Rule(ngram=ngram, coverage=coverage, max_overlap=max_overlap, min_words=min_words))
    folder = out or data.with_name(data.stem + ".decontaminated")
    done = clean_file(index, read_documents(data), folder, action=action, reason=reason, suites=suites)
    if as_json:
        emit_json({"out": folder, "clean": done.clean, "certificate": done.certificate.to_dict(), **_totals(done)})
    else:
        _show(done, folder)
        if action == "refuse" and done.certificate.removed_rows:
            talk(f"not refused: of no task more than --max-overlap {max_overlap:g} of the items was found, so only the rows were removed")
    return ExitCode.DONE


def _items(ref: str, registry: Registry) -> tuple[Iterable[Any], str]:
    """The items that ``ref`` names, and the version they are known by: a suite's own, or a file's hash."""
    import hashlib

    from steelyard.decontaminate import read_items
    from steelyard.recipe import load_suite

    path = Path(ref)
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        return read_items(path), hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    suite = load_suite(ref, registry, Path.cwd())
    harness = registry.get("harnesses", suite.harness).impl.load()(registry)
    return list(harness.items(suite)), str(suite.version)


def _totals(done: FileCleaning) -> dict[str, Any]:
    report = done.report.to_dict()
    return {name: report[name] for name in ("documents", "scan_seconds", "totals", "rates", "contaminated_tasks")}


def _show(done: FileCleaning, folder: Path) -> None:
    print(done.certificate.sentence)
    print()
    print_table(
        ("task", "source", "items matched", "rows"),
        [(o["task"], o["source"], o["items"], o["rows"]) for o in done.report.to_dict()["overlaps"]],
    )
    talk(f"written: {folder}")
