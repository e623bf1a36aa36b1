"""``steelyard verify``: runs a verifier over completions in a file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from steelyard.cli._context import emit_json, registry_from, talk
from steelyard.errors import DataError, UsageError, VerifierError

if TYPE_CHECKING:
    from steelyard.verify import OpenVerifiers

_BATCH = 512
_MOST_COMPLAINTS = 20


@click.command()
@click.argument("verifier")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the verdicts go (default: stdout).")
@click.option("-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the verifier; repeatable.")
@click.option("--timeout", "timeout_s", type=float, help="Seconds for one check; the verifier then runs in a process of its own.")
@click.option("--max-failure-rate", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Failures above it: exit code 5.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout; needs --out.")
@click.pass_context
def command(
    ctx: click.Context,
    verifier: str,
    file: Path,
    out: Path | None,
    options: tuple[str, ...],
    timeout_s: float | None,
    max_failure_rate: float,
    as_json: bool,
) -> None:
    """Run VERIFIER over FILE: a JSON object a line with `id`, `response` and `reference`.

    Writes a line for each row, in order, with `id`, `outcome`, `score`, `detail` and `seconds`. A row that cannot be read gets the
    outcome `error`, like a check that failed; the rest go on.
    """
    from steelyard.verify import open_verifiers

    if as_json and out is None:
        raise UsageError("--json prints the summary on stdout, so say with --out where the verdicts go")
    given = _options(options)
    counts: Counter[str] = Counter()
    total_score = 0.0
    with open_verifiers({verifier: (verifier, given, timeout_s)}, registry_from(ctx), max_failure_rate=1.0) as opened, _sink(out) as sink:
        for result in _verdicts(file, verifier, opened):
            counts[result["outcome"]] += 1
            total_score += result["score"] or 0.0
            sink.write(json.dumps(result, ensure_ascii=False) + "\n")
    total, failed = counts.total(), counts["error"] + counts["timeout"]
    if not total:
        raise DataError(f"{file}: no rows")
    mean = total_score / (total - failed) if total > failed else None
    if as_json:
        emit_json({"verifier": verifier, "rows": total, "outcomes": dict(counts), "mean_score": mean, "failures": failed, "out": out})
    talk(
        f"{total} rows: {', '.join(f'{n} {outcome}' for outcome, n in counts.most_common())}"
        + ("" if mean is None else f"; mean score {mean:.3f} over the {total - failed} that were judged")
    )
    if failed > max_failure_rate * total:
        raise VerifierError(
            f"{failed} of {total} rows failed ({failed / total:.1%}, the limit is {max_failure_rate:.1%}); see their detail"
        )


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"-o {pair!r} is not of the form key=value, as in `-o {key or 'ignore_case'}=true`")
        if key in given:
            raise UsageError(f"-o {key!r} is given twice")
        given[key] = _value(pair, text)
    return given


def _value(pair: str, text: str) -> Any:
    """YAML for numbers, booleans, quoted texts, [lists] and {mappings}; any other text as it stands, blanks and colons included."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise UsageError(f"-o {pair!r} is not valid YAML: {' '.join(str(error).split())}") from error
        return text
    plain = isinstance(value, str | dict | list) and text[:1] not in ("[", "{", '"', "'")
    return text if plain else value


def _verdicts(file: Path, verifier: str, opened: OpenVerifiers) -> Iterator[dict[str, Any]]:
    from steelyard.records import Completion

    complaints = 0
    for batch in _batches(_rows(file)):
        checks = [
            (verifier, Completion(str(row["id"]), 0, (), row["response"], "stop"), row["reference"])
            for row, problem in batch
            if not problem
        ]
        answers = iter(opened.verify_timed(checks))
        for row, problem in batch:
            if problem:
                complaints += 1
                if complaints <= _MOST_COMPLAINTS:
                    talk(problem + ("" if complaints < _MOST_COMPLAINTS else " (further rows like this are only in the output)"))
                yield {"id": row.get("id"), "outcome": "error", "score": None, "detail": problem, "seconds": 0.0}
            else:
                verdict, seconds = next(answers)
                yield {
                    "id": row["id"],
                    "outcome": verdict.outcome.value,
                    "score": verdict.score,
                    "detail": verdict.detail,
                    "seconds": round(seconds, 6),
                }


def _rows(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row that is not blank, with what is wrong with it or ''."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                yield {}, f"{where}: not JSON: {error}"
                continue
            if not isinstance(row, dict):
                yield {}, f"{where}: {type(row).__name__} where an object with 'id', 'response' and 'reference' is due"
                continue
            yield row, _complaint(where, row)


def _complaint(where: str, row: dict[str, Any]) -> str:
    for field in ("id", "response", "reference"):
        if field not in row:
            return f"{where}: field {field!r} is missing"
    if not isinstance(row["id"], str | int):
        return f"{where}: field 'id' is {row['id']!r}, not a text or a whole number"
    if not isinstance(row["response"], str):
        return f"{where}: field 'response' is {str(row['response'])[:60]!r} ({type(row['response']).__name__}), not a text"
    return ""


def _batches(rows: Iterable[tuple[dict[str, Any], str]]) -> Iterator[list[tuple[dict[str, Any], str]]]:
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        yield batch


@contextlib.contextmanager
def _sink(out: Path | None) -> Iterator[IO[str]]:
    """Where verdicts go: stdout, or a file that appears when it is whole."""
    if out is None:
        yield sys.stdout
        return
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
