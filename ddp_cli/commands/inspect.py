"""`ddp inspect`: what a file, store, dataset, run, checkpoint or exported policy holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import DataError

FILES_OF_POLICIES = ("config.json", "policy.json", "proof.json")

EXAMPLES = options.examples("ddp inspect sample_data/square.hdf5", "ddp inspect sample_data/square-policy --json")


def inspect(
    source: Annotated[
        Path, typer.Argument(help="HDF5 file, store, LeRobot dataset, run, checkpoint or exported folder.")
    ],
    task: options.SourceTask = None,
    json: options.Json = False,
) -> None:
    """Describe a file, store, dataset, run, checkpoint or exported policy."""
    from ddp_cli.checkpoint_files import is_run
    from ddp_cli.data.inspection import describe_source, inspect_source
    from ddp_cli.deploy.policy_inspection import describe_policy, inspect_policy, is_policy
    from ddp_cli.task_file import read_task
    from ddp_cli.training.resume_command import resume_command

    if source.is_file() and source.suffix in (".ckpt", ".pt", ".pth"):
        raise DataError(
            f"'{source}' is a file of model weights.",
            f"Checkpoints of the published code can be imported: `ddp import {source}`.",
        )
    if source.is_file() and (source.suffix in (".safetensors", ".onnx") or source.name in FILES_OF_POLICIES):
        raise DataError(f"'{source}' is a file of a checkpoint or an exported policy.", "Name its folder.")
    if source.is_file() and source.suffix == ".json":
        raise DataError(f"'{source}' holds no recording and no policy.", f"Reports: `ddp report {source}`.")
    if is_run(source) and not is_policy(source):
        raise DataError(f"the run '{source}' has no checkpoint yet.", f"Resume it: `{resume_command(source)}`.")
    if is_policy(source):
        if task is not None:
            raise DataError(f"--task does not apply to '{source}', which is a policy.", "Leave it out.")
        contents = inspect_policy(source)
        rows = describe_policy(contents)
    else:
        contents = inspect_source(source, read_task(task) if task else None)
        rows = describe_source(contents)
    if json:
        console.print_json(contents)
    else:
        console.table(str(source), rows)
