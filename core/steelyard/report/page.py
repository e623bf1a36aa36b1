"""The page: gathers the sections and renders them. Every value passes through the template engine's escaping; no script, no request."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard import __version__
from steelyard.report import formatting
from steelyard.report.completions import comparisons, step_samples
from steelyard.report.curves import step_curves
from steelyard.report.datasets import datasets
from steelyard.report.headline import headline
from steelyard.report.provenance import configuration, lineages, timings
from steelyard.report.record import RunRecord, read_run
from steelyard.report.reward_models import held_out
from steelyard.report.rounds import ladder, round_views
from steelyard.run.durable import storage_errors, write_text

if TYPE_CHECKING:
    import jinja2

__all__ = ["REPORT_NAME", "Report", "render_report", "save", "standalone", "write_report"]

REPORT_NAME = "report.html"
_FILTERS: dict[str, Callable[..., Any]] = {
    name: getattr(formatting, name) for name in ("counted", "duration", "number", "plain", "points", "score", "short")
}


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its heading, and what its template is given."""

    id: str
    title: str
    content: Any


@dataclass(frozen=True)
class Report:
    """A rendered page; ``sections`` are the anchors of those it has, ``problems`` what could not be read."""

    html: str
    sections: tuple[str, ...]
    problems: tuple[str, ...]


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Writes the report of a run, finished or not, and returns its path (default: ``report.html`` in the run folder).

    Errors: :class:`~steelyard.errors.UsageError` where there is no run, :class:`~steelyard.errors.StorageError` where nothing can be
    written. What is missing or torn in the run's artifacts is said on the page."""
    path = run_dir / REPORT_NAME if out is None else out
    save(render_report(run_dir), path)
    return path


def save(report: Report, path: Path) -> None:
    """Puts the page in place, whole. Errors: :class:`~steelyard.errors.StorageError`."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, report.html)


def render_report(run_dir: Path) -> Report:
    """The page of a run. Errors: :class:`~steelyard.errors.UsageError` where there is no run."""
    record = read_run(run_dir)
    top = headline(record)
    sections = [section for section in _sections(record) if section.content]
    template = _environment().get_template("report.html.jinja")
    html = template.render(
        name=record.name,
        headline=top,
        sections=sections,
        problems=record.problems,
        style=_style(),
        style_hash=_style_hash(),
        written=formatting.moment(datetime.now(UTC).isoformat()),
        started=formatting.moment(record.sessions[0].get("started")) if record.sessions else "",
        version=__version__,
        seconds=sum(step.seconds for step in record.steps),
    )
    return Report(html, ("verdict", *(section.id for section in sections)), tuple(record.problems))


def _sections(record: RunRecord) -> list[Section]:
    """In the order of a reader's questions: what was decided, on what grounds, from what, by what."""
    climb = ladder(record)
    texts, samples = comparisons(record), step_samples(record)
    asked = configuration(record)
    return [
        Section("ladder", "The ladder of promotions", climb if climb.rungs else None),
        Section("differences", "Paired differences", round_views(record)),
        Section("completions", "Completions side by side", texts),
        Section("curves", "Learning curves", step_curves(record)),
        Section("reward_models", "Reward models on held-out pairs", held_out(record)),
        Section("samples", "Samples of the stages", samples),
        Section("data", "Data", datasets(record)),
        Section("lineage", "Lineage", lineages(record)),
        Section("configuration", "Configuration", asked if asked.resolved or asked.versions else None),
        Section("timings", "Timings", timings(record)),
    ]


def standalone(template: str, **content: Any) -> str:
    """A page of its own, in the same style and under the same rules."""
    return _environment().get_template(template).render(style=_style(), style_hash=_style_hash(), version=__version__, **content)


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steelyard.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    return environment


def _finalize(value: Any) -> Any:
    """Before it is escaped, a text loses its power over the page's layout and encoding."""
    return formatting.visible(value) if type(value) is str else value


@cache
def _style() -> str:
    """The style sheet as a style element holds it; the page's policy names its hash, so that no other style counts."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, "report.css")[0]


def _style_hash() -> str:
    return base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
