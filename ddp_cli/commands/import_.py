"""`ddp import`: a checkpoint of the published diffusion policy code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import DdpError

EXAMPLES = options.examples("ddp import latest.ckpt --out imported/", "ddp import latest.ckpt && ddp eval latest/")


def import_(
    model: Annotated[Path, typer.Argument(help="A .ckpt file of the published code (transformer policies).")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Checkpoint folder to write; named after the file by default.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Import a checkpoint of the published code.

    Reads .ckpt files of the published diffusion policy implementation. Nothing in the file is executed.
    """
    from ddp_cli.checkpoint_files import MODEL
    from ddp_cli.core.checkpoint import load_meta
    from ddp_cli.deploy.checkpoint_import import import_checkpoint

    if model.is_dir():
        raise DdpError(f"'{model}' is a folder.", "Name a .ckpt file; `ddp eval` takes checkpoint folders as they are.")
    if model.is_file() and (model.parent / MODEL).is_file() and model.suffix != ".ckpt":
        folder = model.parent
        raise DdpError(f"'{model}' belongs to the checkpoint '{folder}'.", f"Use it as it is: `ddp eval {folder}`.")
    out = out or Path(model.stem)
    # Only a checkpoint is replaced: a run folder holds config.json as well.
    with options.reserve_output(out, overwrite, ("model.safetensors",)):
        policy = import_checkpoint(model, out)
    assumed = load_meta(out).get("assumed", [])
    if isinstance(assumed, list) and assumed:
        console.warn(f"'{model}' is incomplete. Assumed: {'; '.join(map(str, assumed))}")
    if json:
        task = policy.config.task.name
        console.print_json({"source": str(model), "out": str(out), "task": task, "assumed": assumed})
        return
    console.result(f"{out}: {policy.config.task.name} policy from {policy.config.obs} observations, from {model}")
    console.note(f"Next: `ddp eval {out}`.")
