"""The Typer app: registers the commands and turns errors into one line and an exit code.

0 done, 1 a user's error, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from ddp_cli import __version__, console
from ddp_cli.commands.collect import collect
from ddp_cli.commands.convert import convert
from ddp_cli.commands.doctor import doctor
from ddp_cli.commands.eval import evaluate
from ddp_cli.commands.export import export
from ddp_cli.commands.rollout import rollout
from ddp_cli.commands.serve import serve
from ddp_cli.commands.train import train
from ddp_cli.errors import DdpError


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DdpError as e:
            if str(e):  # empty where another process says it
                console.error(" ".join(str(e).split()))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            console.note("interrupted")
            raise typer.Exit(130) from None
        except OSError as e:
            console.error(_os_error(e))
            raise typer.Exit(1) from None


def _os_error(e: OSError) -> str:
    # h5py wraps the system's error in a long text of its own.
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(e) or "File too large" in str(e):
        return "the disk is full. Free some space, or name an output on another disk; then run the same command again."
    where = f"'{e.filename}': " if e.filename else ""
    return f"{where}{e.strerror or ' '.join(str(e).split())}."


app = typer.Typer(
    cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=True,
    help="Raw robot demonstrations in, diffusion policies out.",
)  # fmt: skip
app.command()(collect)
app.command()(convert)
app.command()(train)
app.command("eval")(evaluate)
app.command()(rollout)
app.command()(export)
app.command()(serve)
app.command()(doctor)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"ddp {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Raw robot demonstrations in, diffusion policies out."""


if __name__ == "__main__":
    app()
