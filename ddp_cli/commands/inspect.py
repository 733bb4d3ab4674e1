"""`ddp inspect`: what a file, store, dataset, run, checkpoint or exported policy holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import DataError

EXAMPLES = options.examples("ddp inspect sample_data/square.hdf5", "ddp inspect sample_data/square-policy --json")


def inspect(
    source: Annotated[
        Path, typer.Argument(help="HDF5 file, store, LeRobot dataset, run, checkpoint or exported folder.")
    ],
    task: options.SourceTask = None,
    json: options.Json = False,
) -> None:
    """Describe a file, store, dataset, run, checkpoint or exported policy."""
    from ddp_cli.data.inspection import describe_source, inspect_source
    from ddp_cli.deploy.policy_inspection import inspect_policy, is_policy
    from ddp_cli.task_file import read_task

    if source.is_file() and source.suffix in (".ckpt", ".pt", ".pth"):
        raise DataError(
            f"'{source}' is a file of model weights.",
            f"Checkpoints of the published code can be imported: `ddp import {source}`.",
        )
    if source.is_file() and source.suffix in (".safetensors", ".json", ".onnx"):
        raise DataError(f"'{source}' is a file of a checkpoint or an exported policy.", "Name its folder.")
    if (source / "config.json").is_file() and (source / "checkpoints").is_dir() and not is_policy(source):
        raise DataError(f"the run '{source}' has no checkpoint yet.", "Resume it with `ddp train --resume`.")
    if is_policy(source):
        if task is not None:
            raise DataError(f"--task does not apply to '{source}', which is a policy.", "Leave it out.")
        contents = inspect_policy(source)
        rows = _policy_rows(contents)
    else:
        contents = inspect_source(source, read_task(task) if task else None)
        rows = describe_source(contents)
    if json:
        console.print_json(contents)
    else:
        console.table(str(source), rows)


def _policy_rows(contents: dict[str, Any]) -> list[tuple[str, ...]]:
    """The values of `inspect_policy` for people."""
    store, action = contents["store"] or {}, contents["action"] or {}
    origin = (
        f"{store['file'] or 'unknown path'}, {store['demos']} demonstrations, {store['steps']} steps" if store else ""
    )
    megabytes = sum(contents["files"].values()) / 1e6
    kind = contents["kind"] + (f" ({contents['format']}, {contents['precision']})" if contents["format"] else "")
    rows: list[tuple[str, ...]] = [
        ("kind", kind),
        ("task", f"{contents['task']}, from {contents['obs']} observations"),
        ("inputs", "; ".join(f"{key} {tuple(shape)}" for key, shape in contents["inputs"].items())),
        ("action", ", ".join(f"{key} {value}" for key, value in action.items())),
        ("chunk", f"{contents['n_action_steps']} of {contents['horizon']} predicted actions are executed"),
        ("observations", f"the last {contents['n_obs_steps']} steps"),
        ("sampler", f"{contents['sampler']}, {contents['inference_steps']} steps"),
        ("parameters", f"{contents['parameters']:,}"),
        ("training step", "imported" if contents["step"] is None else str(contents["step"])),
        ("run", contents["run"] or "none"),
        ("store", origin),
        ("versions", ", ".join(f"{name} {version}" for name, version in contents["versions"].items())),
        ("files", f"{', '.join(contents['files'])} ({megabytes:.1f} MB)"),
    ]
    if contents["kind"] == "checkpoint":
        rows.append(("resumable", "yes" if contents["resumable"] else "no: it has no training state"))
    return rows
