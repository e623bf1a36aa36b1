"""What the commands share: the registry, JSON on stdout, talk on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from steelyard.plugins import Registry

__all__ = ["Session", "console", "emit_json", "print_table", "registry_from", "session_from", "talk"]

_NO_FOLDING = 2000


@dataclass
class Session:
    """The options of the group, and what was made from them; ``ctx.obj`` of every command."""

    disabled: Sequence[str] = ()
    debug: bool = False
    registry: Registry | None = None


def session_from(ctx: click.Context) -> Session:
    """The session of this call, also for a command that is run on its own."""
    return ctx.ensure_object(Session)


def registry_from(ctx: click.Context) -> Registry:
    """The plugins of this call, collected once; ``--no-plugin``, the environment and the project's pyproject decide which."""
    session = session_from(ctx)
    if session.registry is None:
        from steelyard.plugins import load_registry

        session.registry = load_registry(disabled=_disabled(ctx, session), project=Path.cwd())
    return session.registry


def _disabled(ctx: click.Context, session: Session) -> Sequence[str]:
    """``--help`` is served before the group's function ran, so the option is then read from the context."""
    given: Sequence[str] | None = ctx.find_root().params.get("no_plugin")
    return given or session.disabled


def emit_json(data: Any) -> None:
    """Print ``data`` as JSON on stdout: indented, keys as given, no NaN."""
    print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_json"):
        return value.to_json()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"{type(value).__name__} is not JSON")


def talk(message: str) -> None:
    """A line for the human, on stderr."""
    print(message, file=sys.stderr, flush=True)


def console(*, stderr: bool = False) -> Console:
    """A rich console; without colour where the stream is not a terminal, and then wide enough that no line is folded."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=not stream.isatty(), width=None if stream.isatty() else _NO_FOLDING)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout: boxless, ragged to the right; cells are text, not markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    wide = console()
    with wide.capture() as shown:
        wide.print(table)
    print("\n".join(line.rstrip() for line in shown.get().splitlines()))
