"""The Typer app: registers the commands and turns errors into one line and an exit code.

Exit codes: 0 success, 1 an error, or a closed output pipe, 2 wrong usage, 130 interrupted. The traceback of an
unexpected error is written to a file; with DDP_DEBUG=1 the traceback of every error is printed instead.
"""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ddp_cli import __version__, console, interruption
from ddp_cli.commands import (
    collect,
    convert,
    doctor,
    eval,
    export,
    import_,
    inspect,
    plot,
    preview,
    report,
    rollout,
    run,
    serve,
    train,
)
from ddp_cli.error_messages import error_message

UsageError: Any = typer.BadParameter.__base__


class _Group(TyperGroup):
    """Prints every error as one line."""

    _arguments: Sequence[str] = ()

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        self._arguments = tuple(args)
        with _errors_reported():
            try:
                return super().make_context(info_name, args, *more, **extra)
            except UsageError as e:
                raise self._usage_exit(e) from None

    def invoke(self, ctx: Any) -> Any:
        with _errors_reported():
            try:
                result = super().invoke(ctx)
            except UsageError as e:
                raise self._usage_exit(e) from None
            if sys.stdout is not None:
                sys.stdout.flush()
            return result

    def main(self, *args: Any, **extra: Any) -> Any:
        with _errors_reported():  # a second Ctrl-C, or the completion of a shell
            return super().main(*args, **extra)

    def _usage_exit(self, e: Any) -> Exception:
        """Prints what is wrong with the arguments, and returns the exit to raise."""
        if "NoArgsIsHelp" in type(e).__name__:  # its message is the help
            return e
        message = " ".join(e.format_message().replace("Value error, ", "").split()).rstrip(".")
        names = getattr(getattr(e, "param", None), "opts", ())
        values = [value for name, value in itertools.pairwise(self._arguments) if name in names]
        values += [a.partition("=")[2] for a in self._arguments if a.startswith(tuple(f"{name}=" for name in names))]
        if values and f"'{values[-1]}'" not in message:
            message += f" (got '{values[-1]}')"
        command, context = "", e.ctx
        if context is None and self._arguments and self._arguments[0] in self.commands:
            command = f" {self._arguments[0]}"  # click passes no context where an option lacks its value
        while context is not None and context.parent is not None:
            command, context = f" {context.info_name}{command}", context.parent
        console.error(f"{message}. Run `ddp{command} --help` for the options.")
        return typer.Exit(2)


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Turns every exception into one line and an exit code."""
    try:
        yield
    except (typer.Exit, typer.Abort, UsageError):
        raise
    except KeyboardInterrupt as e:
        raise _interrupted(e) from None
    except Exception as e:  # noqa: BLE001 - every error ends as one line
        if _was_interrupted(e):
            raise _interrupted(e) from None
        if isinstance(e, OSError):
            _discard_output()
        if not isinstance(e, BrokenPipeError):
            _print_error(e)
        raise SystemExit(1) from None


def _discard_output() -> None:
    """Drops what stdout still holds if it cannot be written: Python would try it again at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted(e: BaseException) -> SystemExit:
    console.note(" ".join(["interrupted", *(f"({note.rstrip('.')})" for note in getattr(e, "__notes__", []))]))
    return SystemExit(130)


def _was_interrupted(e: Exception) -> bool:
    """Whether Ctrl-C caused the exception: some libraries replace a KeyboardInterrupt while they are imported."""
    has_cause = isinstance(e.__cause__ or e.__context__, KeyboardInterrupt)
    return isinstance(e, ImportError | SystemError) and (has_cause or interruption.was_received())


def _print_error(e: Exception) -> None:
    debug = bool(os.environ.get("DDP_DEBUG"))
    if debug:
        traceback.print_exc()
    message = " ".join([error_message(e, debug), *getattr(e, "__notes__", [])])
    if message:  # empty in processes that leave the message to another one
        console.error(" ".join(message.split()))


app = typer.Typer(
    cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=True,
    help="Turn robot demonstrations into diffusion policies that run.",
)  # fmt: skip

DATA, TRAINING, EVALUATION = "Data", "Training", "Evaluation"
REPORTS, DEPLOYMENT, SETUP = "Reports", "Deployment", "Installation"
COMMANDS: dict[str, list[tuple[str, Callable[..., None], str]]] = {
    DATA: [
        ("collect", collect.collect, collect.EXAMPLES),
        ("convert", convert.convert, convert.EXAMPLES),
        ("inspect", inspect.inspect, inspect.EXAMPLES),
        ("preview", preview.preview, preview.EXAMPLES),
    ],
    TRAINING: [("train", train.train, train.EXAMPLES), ("plot", plot.plot, plot.EXAMPLES)],
    EVALUATION: [("eval", eval.evaluate, eval.EXAMPLES), ("rollout", rollout.rollout, rollout.EXAMPLES)],
    REPORTS: [("report", report.report, report.EXAMPLES)],
    DEPLOYMENT: [
        ("export", export.export, export.EXAMPLES),
        ("import", import_.import_, import_.EXAMPLES),
        ("serve", serve.serve, serve.EXAMPLES),
        ("run", run.run, run.EXAMPLES),
    ],
    SETUP: [("doctor", doctor.doctor, doctor.EXAMPLES)],
}
for panel, commands in COMMANDS.items():
    for name, function, epilog in commands:
        app.command(name, epilog=epilog, rich_help_panel=panel)(function)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"ddp {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Turn robot demonstrations into diffusion policies that run."""


if __name__ == "__main__":
    app()
