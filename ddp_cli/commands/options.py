"""Options that several commands share, and the checks that go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddp_cli.errors import DdpError

RUNS = Path("runs")
DATA = Path("data")

Task = Annotated[
    str, typer.Option("--task", "-t", help="lift, can, square, or a JSON file that describes another task.")
]
DemosTask = Annotated[
    str | None,
    typer.Option("--task", "-t", help="As for train; by default told from the demos' environment.", show_default=False),
]
AnyTask = Annotated[
    str | None, typer.Option("--task", "-t", help="Take the newest run of this task (a name or its file).")
]
Checkpoint = Annotated[
    Path | None,
    typer.Argument(help="Checkpoint folder or run; the newest run's best checkpoint by default.", show_default=False),
]
Policy = Annotated[
    Path | None,
    typer.Option("--policy", help="A folder of `ddp export`, instead of a checkpoint.", show_default=False),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", "-j", min=1, help="Processes; one per processor by default.", show_default=False),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Sampler = Annotated[
    str | None,
    typer.Option("--sampler", help="ddpm, ddim or dpm; by default the checkpoint's own.", show_default=False),
]
InferenceSteps = Annotated[
    int | None,
    typer.Option(
        "--inference-steps", min=1, help="Denoising steps; the checkpoint's own by default.", show_default=False
    ),
]
Engine = Annotated[
    str, typer.Option("--engine", help="torch, compile or onnx; auto: onnx on a CPU where it can, otherwise torch.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


def one_of(checkpoint: Path | None, policy: Path | None) -> Path | None:
    """Whichever of both was named; DdpError if both were."""
    if checkpoint and policy:
        raise DdpError(f"'{checkpoint}' and --policy '{policy}' at once.", "Name one of them.")
    return policy or checkpoint


def new_store(task: str, obs: str) -> Path:
    """Where the store of `task` is made when nothing is said: one without pictures stands beside."""
    return DATA / (f"{task}-state.zarr" if obs == "state" else f"{task}.zarr")


def known_store(task: str, obs: str) -> Path:
    """The store of `task` when nothing is said; one with pictures also serves state policies."""
    pictures = new_store(task, "image")
    return pictures if pictures.exists() else new_store(task, obs)


def check_output(path: Path, overwrite: bool, marks: tuple[str, ...] = ()) -> None:
    """DdpError if `path` exists and may not be replaced, or cannot be created.

    `marks` are given for folders: only one that holds such a file (or nothing) is ever replaced.
    """
    if path.name in {"", ".."}:
        raise DdpError(f"'{path}' cannot be replaced.", "Name a file or folder in it.")
    if path.exists() and not overwrite:
        raise DdpError(f"'{path}' exists.", "Add --overwrite to replace it, or name another.")
    if path.is_dir() and any(path.iterdir()) and not any((path / mark).exists() for mark in marks):
        raise DdpError(f"'{path}' is a folder of something else, and is not replaced.", "Name another output.")
    if path.is_file() and marks:
        raise DdpError(f"'{path}' is a file, the output is a folder.", "Name another output.")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise DdpError(f"'{parent}' is not a folder.", f"'{path}' cannot be created there.")


def sample_data() -> Path:
    """The folder of sample demos: in the current folder, or beside the package in a source checkout."""
    here = Path("sample_data")
    return here if here.is_dir() else Path(__file__).parents[1] / "sample_data"
