"""`ddp export`: a policy that runs without the training code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console, options


def export(
    checkpoint: options.Checkpoint = None,
    kind: Annotated[
        str, typer.Option("--format", "-f", help="onnx, safetensors, or ddp (a native checkpoint).")
    ] = "onnx",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("policy"),
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Store to check with; the run's own by default.", show_default=False),
    ] = None,
    task: options.AnyTask = None,
    runs: options.Runs = options.RUNS,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write ONNX graphs (checked against torch on stored observations), a weights folder, or a native checkpoint.

    A .ckpt file of the published diffusion policy code is read without running anything it carries.
    """
    from dataclasses import asdict

    from ddp_cli.core.checkpoint import load_policy, resolve_checkpoint
    from ddp_cli.core.published import load_published
    from ddp_cli.core.run import store_of
    from ddp_cli.data.store import Store
    from ddp_cli.deploy.export import TOLERANCE, stored_observations
    from ddp_cli.deploy.export import export as write_export

    options.check_output(out, overwrite, ("policy.json", "model.safetensors"))
    if checkpoint is not None and checkpoint.is_file():
        folder = checkpoint
        policy, meta = load_published(checkpoint)
    else:
        folder = resolve_checkpoint(checkpoint, runs, task)
        policy, meta = load_policy(folder)
    config = policy.config
    keys = [*config.image_keys, *config.low_dim]
    found = data or store_of(folder) or options.known_store(config.task.name, config.obs)
    done = write_export(policy, meta, kind, out, lambda: stored_observations(keys, Store(found), config.n_obs_steps))
    if json:
        console.print_json({"checkpoint": str(folder), "out": str(out), **asdict(done)})
        return
    console.result(f"{out}: {', '.join(done.files)}, from {folder}")
    for name, difference in done.differences.items():
        console.result(f"{name}: largest difference from torch {difference:.1e} (limit {TOLERANCE:.0e})")
