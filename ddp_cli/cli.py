"""The Typer app: registers the commands and turns errors into one line and an exit code.

Exit codes: 0 success, 1 a user's error, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from ddp_cli import __version__, console
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
    rollout,
    serve,
    train,
)
from ddp_cli.errors import DdpError

UsageError: Any = typer.BadParameter.__base__


class _Group(TyperGroup):
    """Prints every error as one line."""

    _arguments: Sequence[str] = ()

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        self._arguments = tuple(args)
        try:
            return super().make_context(info_name, args, *more, **extra)
        except UsageError as e:
            raise self._usage_exit(e) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as e:
            raise self._usage_exit(e) from None
        except DdpError as e:
            if str(e):  # empty in processes that leave the message to another one
                console.error(" ".join(str(e).split()))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            console.note("interrupted")
            raise typer.Exit(130) from None
        except OSError as e:
            console.error(_os_error_message(e))
            raise typer.Exit(1) from None

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
        while context is not None and context.parent is not None:
            command, context = f" {context.info_name}{command}", context.parent
        console.error(f"{message}. Run `ddp{command} --help` for the options.")
        return typer.Exit(2)


def _os_error_message(e: OSError) -> str:
    # h5py wraps the operating system's error in a longer message.
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(e) or "File too large" in str(e):
        return "the disk is full. Free some space, or choose an output on another disk, and run the same command again."
    path = f"'{e.filename}': " if e.filename else ""
    return f"{path}{e.strerror or ' '.join(str(e).split())}."


app = typer.Typer(
    cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=True,
    help="Turn robot demonstrations into diffusion policies that run.",
)  # fmt: skip

DATA, TRAINING, EVALUATION, DEPLOYMENT, SETUP = "Data", "Training", "Evaluation", "Deployment", "Installation"
COMMANDS: dict[str, list[tuple[str, Callable[..., None], str]]] = {
    DATA: [
        ("collect", collect.collect, collect.EXAMPLES),
        ("convert", convert.convert, convert.EXAMPLES),
        ("inspect", inspect.inspect, inspect.EXAMPLES),
        ("preview", preview.preview, preview.EXAMPLES),
    ],
    TRAINING: [("train", train.train, train.EXAMPLES), ("plot", plot.plot, plot.EXAMPLES)],
    EVALUATION: [("eval", eval.evaluate, eval.EXAMPLES), ("rollout", rollout.rollout, rollout.EXAMPLES)],
    DEPLOYMENT: [
        ("export", export.export, export.EXAMPLES),
        ("import", import_.import_, import_.EXAMPLES),
        ("serve", serve.serve, serve.EXAMPLES),
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
