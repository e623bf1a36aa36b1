"""The ``steelyard`` command: a lazy group of commands, and what becomes of their errors.

One file a command; each holds ``command``, a :class:`click.Command` whose function may return an exit code
(:class:`~steelyard.errors.ExitCode`; None is 0). A file is imported when its command is run, so ``steelyard --help`` imports none, and a
command imports what is heavy inside its function. Plugins add commands by the hook ``steelyard_commands``.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from steelyard import __version__
from steelyard.cli._context import Session, registry_from, talk
from steelyard.errors import ExitCode, SteelyardError, nearest

if TYPE_CHECKING:
    from steelyard.specs import CommandSpec

__all__ = ["main"]

COMMANDS = {
    "init": "Write a recipe to start from.",
    "plan": "Show what a recipe would run: steps, rows and disk where known, and what its gate can prove.",
    "run": "Run a recipe, or go on with it.",
    "resume": "Go on with a run that was stopped.",
    "status": "Show how far a run is.",
    "eval": "Evaluate a model on a suite.",
    "compare": "Compare two evaluations, or two sets of them, without a decision.",
    "gate": "Weigh a challenger's evaluation against a champion's.",
    "verify": "Run a verifier over completions in a file.",
    "decontaminate": "Remove training rows that overlap with a suite.",
    "report": "Write a run's HTML report.",
    "lineage": "Show what a model was made from.",
    "recipes": "List, show and describe recipes.",
    "suites": "List and show evaluation suites.",
    "plugins": "List plugins and what they bring.",
    "doctor": "Check this machine: versions, plugins, accelerator, sandbox, disk.",
}
"""Every built-in command and its line of help; its file has the same name. In the order in which help lists them."""

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_SIGPIPE_STATUS = 141
_SIGINT_STATUS = 130


class _ReaderGone(Exception):
    """Nobody reads stdout any more."""


class _Commands(click.Group):
    """Finds commands by name without importing the others."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would exit with 1, which here means that a gate did not promote.
            raise _ReaderGone from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(_plugin_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            found = importlib.import_module(f"steelyard.cli.{cmd_name}").command
        else:
            spec = _plugin_commands(ctx).get(cmd_name)
            if spec is None:
                return None
            found = spec.impl.load()
        if not isinstance(found, click.Command):
            raise TypeError(f"the command {cmd_name!r} is a {type(found).__name__}, not a click.Command")
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not name.startswith("-"):
            ctx.fail(f"no command {name!r}{nearest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        added = {name: spec.summary for name, spec in sorted(_plugin_commands(ctx).items())}
        if added:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(list(added.items()))


def _plugin_commands(ctx: click.Context) -> dict[str, CommandSpec]:
    """Commands that plugins add; none while plugins cannot be collected, for help must work even then."""
    try:
        return {name: spec for name, spec in registry_from(ctx).all("commands").items() if name not in COMMANDS}
    except SteelyardError as error:
        talk(f"warning: {error}")
        return {}


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="steelyard")
@click.option("--no-plugin", "no_plugin", multiple=True, is_eager=True, metavar="NAME", help="Leave a plugin out; repeatable.")
@click.option("--debug", is_flag=True, envvar="STEELYARD_DEBUG", help="Show the traceback of an error (or set STEELYARD_DEBUG).")
@click.pass_context
def group(ctx: click.Context, no_plugin: tuple[str, ...], debug: bool) -> None:
    """Post-training in which every round is weighed before it is promoted.

    Start with `steelyard run quickstart`, or with `steelyard init` for a recipe of your own.
    """
    session = ctx.ensure_object(Session)
    session.disabled, session.debug = no_plugin, debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; what the ``steelyard`` script calls."""
    session = Session(debug=bool(os.environ.get("STEELYARD_DEBUG")))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without the characters of a name or a dash must not turn an answer into an error.
            stream.reconfigure(errors="replace")
    try:
        result = group.main(
            args=None if arguments is None else list(arguments),
            prog_name="steelyard",
            standalone_mode=False,
            obj=session,
        )
        sys.stdout.flush()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or ExitCode.DONE
        talk(f"error: {stop.code}")
        return ExitCode.INTERNAL
    except BaseException as error:
        return _explain(error, session, sys.argv[1:] if arguments is None else arguments)
    return int(result) if isinstance(result, int) else ExitCode.DONE


def _explain(error: BaseException, session: Session, arguments: Sequence[str]) -> int:
    """One line on stderr for the human, the traceback on demand, and the exit code."""
    if session.debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    match error:
        case SteelyardError():
            talk(f"error: {error}")
            return int(error.exit_code)
        case click.exceptions.NoArgsIsHelpError():
            talk(error.format_message())
            return ExitCode.USAGE
        case click.UsageError():
            where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
            talk(f"error: {_as_sentence(error.format_message())}{_meant_override(error, arguments)}{where}")
            return ExitCode.USAGE
        case click.ClickException():
            talk(f"error: {_as_sentence(error.format_message())}")
            return ExitCode.USAGE
        case click.exceptions.Exit():
            return error.exit_code
        case click.Abort() | KeyboardInterrupt():
            talk("interrupted")
            return _SIGINT_STATUS
        case _ReaderGone() | BrokenPipeError():
            return _abandon_stdout()
        case OSError() if error.errno in _FULL_DISK:
            talk(f"error: {(error.strerror or str(error)).lower()}: {error.filename or 'a file being written'}")
            return ExitCode.DATA
        case Exception():
            hint = "" if session.debug else "; `steelyard --debug …` shows the traceback"
            talk(f"error: internal: {type(error).__name__}: {_one_line(str(error))}{hint}")
            return ExitCode.INTERNAL
    raise error


def _meant_override(error: click.UsageError, arguments: Sequence[str]) -> str:
    """``--seed 2`` where ``seed=2`` was meant: a recipe's keys are no options."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return ""
    if not any(parameter.name == "overrides" for parameter in error.ctx.command.params):
        return ""
    from steelyard.recipe.complaints import keys_of
    from steelyard.recipe.schema import Recipe

    key = error.option_name.lstrip("-")
    if key.partition(".")[0] not in (*keys_of(Recipe), "stages"):
        return ""
    given = next((i for i, text in enumerate(arguments) if text.partition("=")[0] == error.option_name), None)
    value = "VALUE"
    if given is not None:
        following = arguments[given + 1] if given + 1 < len(arguments) else value
        value = arguments[given].partition("=")[2] or following
    return f"; a recipe's key is changed without dashes: `{key}={value}`"


def _abandon_stdout() -> int:
    """The reader's going away is neither success nor failure; keep the interpreter from complaining when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _SIGPIPE_STATUS


def _as_sentence(message: str) -> str:
    text = _one_line(message).rstrip(".")
    return text[:1].lower() + text[1:]


def _one_line(text: str) -> str:
    return " ".join(text.split())
