"""Options that several commands share, default paths, and the check of an output path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import choices, console
from ddp_cli.errors import DdpError
from ddp_cli.locks import lock_output
from ddp_cli.seeds import FIRST_SEED, purposes_of_seeds

if TYPE_CHECKING:
    from ddp_cli.parallel import Workers as ParallelWorkers

RUNS = Path("runs")
DATA = Path("data")

# Panels of `--help`
SOURCE, CONTENT, OUTPUT = "Source", "Content", "Output"
POLICY, SAMPLING, EPISODES, EXECUTION = "Policy", "Sampling", "Episodes", "Execution"


def examples(*lines: str) -> str:
    """The epilog of a command's help: commands that work as they are written."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"$ {line}" for line in lines)])


Task = Annotated[
    str,
    typer.Option("--task", "-t", help="Built-in task, or a JSON file that describes another.", rich_help_panel=SOURCE),
]
SourceTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        help="Built-in task or JSON file; by default inferred from the recorded environment.",
        show_default=False,
        rich_help_panel=SOURCE,
    ),
]
RunTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        help="Use the newest run of this task (a name or its JSON file).",
        show_default=False,
        rich_help_panel=POLICY,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Argument(
        help="Checkpoint folder or run; the best checkpoint of the newest run by default.", show_default=False
    ),
]
ExportedPolicy = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        help="Folder written by `ddp export`, instead of a checkpoint.",
        show_default=False,
        rich_help_panel=POLICY,
    ),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds all runs.", rich_help_panel=POLICY)]
Sampler = Annotated[
    choices.Sampler | None,
    typer.Option(
        "--sampler", help="Sampler; the checkpoint's own by default.", show_default=False, rich_help_panel=SAMPLING
    ),
]
InferenceSteps = Annotated[
    int | None,
    typer.Option(
        "--inference-steps",
        min=1,
        help="Denoising steps; the checkpoint's own by default.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
Engine = Annotated[
    choices.Engine,
    typer.Option(
        "--engine",
        help="What computes action chunks. auto: onnx on a CPU where the policy allows it, otherwise torch.",
        rich_help_panel=EXECUTION,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        min=1,
        help="Worker processes; one per CPU core by default, of this machine or of the --cluster.",
        show_default=False,
        rich_help_panel=EXECUTION,
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="auto|HOST:PORT",
        help="Spread the work over a Ray cluster of which this machine is a node; auto: the one that runs here.",
        show_default=False,
        rich_help_panel=EXECUTION,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.", rich_help_panel=EXECUTION)]
BlendSteps = Annotated[
    int,
    typer.Option(
        "--blend-steps",
        min=0,
        help="Control periods over which each chunk is blended with the previous one; 0: none.",
        rich_help_panel=EXECUTION,
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        "--provider",
        help="Of ONNX Runtime, for exported policies: cpu, cuda, tensorrt, openvino or coreml.",
        show_default="cpu",
        rich_help_panel=EXECUTION,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]
Page = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="PAGE",
        help="Write an HTML page of the result, too, as `ddp report` does.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.", rich_help_panel=OUTPUT)]


def one_policy(checkpoint: Path | None, policy: Path | None) -> Path | None:
    """The checkpoint or the exported policy, whichever was given; DdpError if both were."""
    if checkpoint and policy:
        raise DdpError(f"'{checkpoint}' and --policy '{policy}' were both given.", "Name one policy.")
    return policy or checkpoint


def check_chunk_options(n_action_steps: int, sync: bool, blend_steps: int, replan_every: int | None = None) -> None:
    """DdpError if chunks of `n_action_steps` cannot be executed with these options."""
    if sync and (blend_steps or replan_every):
        option = "--blend-steps" if blend_steps else "--replan-every"
        raise DdpError(f"{option} does not go with --sync, which executes whole chunks.", "Leave one of them out.")
    if blend_steps >= n_action_steps:
        raise DdpError(
            f"--blend-steps {blend_steps} does not fit in a chunk of {n_action_steps} actions.",
            f"At most {n_action_steps - 1}.",
        )
    if replan_every and replan_every > n_action_steps:
        raise DdpError(
            f"--replan-every {replan_every} is longer than a chunk of {n_action_steps} actions.",
            f"At most {n_action_steps}.",
        )


def warn_of_evaluation_seeds(seeds: range) -> None:
    """Warn if recorded episodes of robosuite start from `seeds` of evaluations."""
    if set(purposes_of_seeds(seeds)) - {"collect"}:
        console.warn(
            f"the seeds {seeds.start} to {seeds.stop - 1} are also those of evaluations, from {FIRST_SEED['eval']} on: "
            "a policy would be measured on the initial states of its demonstrations. Choose a smaller --seed."
        )


@contextmanager
def open_workers(workers: int | None, cluster: str | None) -> Iterator[ParallelWorkers | None]:
    """The processes that --workers and --cluster name; None for the default of the command."""
    if cluster is None:
        yield workers
        return
    from ddp_cli.cluster.connection import connect

    with connect(cluster, workers) as processes:
        yield processes


def device_of_workers(device: str, cluster: str | None) -> str:
    """The device that workers compute on: on a cluster, the CPU. DdpError if another one was named."""
    if cluster is None:
        return device
    if device not in {"auto", "cpu"}:
        raise DdpError(f"--device {device} does not go with --cluster, whose workers compute on CPUs.", "Leave it out.")
    return "cpu"


def default_store(task: str, obs: str) -> Path:
    """Default path of a new store: data/TASK.zarr, or data/TASK-state.zarr for one without images."""
    return DATA / (f"{task}-state.zarr" if obs == "state" else f"{task}.zarr")


def existing_store(task: str, obs: str) -> Path:
    """Default path of the store to read; one with images also serves state policies."""
    with_images = default_store(task, "image")
    return with_images if with_images.exists() else default_store(task, obs)


def check_output(path: Path, overwrite: bool, markers: tuple[str, ...] = ()) -> None:
    """DdpError if `path` exists and may not be replaced, or cannot be created.

    `markers` are given for folders: only a folder that is empty or holds one of these files is ever replaced.
    """
    if path.name in {"", ".."}:
        raise DdpError(f"'{path}' cannot be replaced.", "Name a file or a folder in it.")
    if path.exists() and not overwrite:
        raise DdpError(f"'{path}' exists.", "Add --overwrite to replace it, or choose another output.")
    if path.is_dir() and any(path.iterdir()) and not any((path / marker).exists() for marker in markers):
        raise DdpError(f"'{path}' is a folder that ddp did not write.", "It is not replaced: choose another output.")
    if path.is_dir() and not markers:
        raise DdpError(f"'{path}' is a folder, but the output is a file.", "Choose another output.")
    if path.is_file() and markers:
        raise DdpError(f"'{path}' is a file, but the output is a folder.", "Choose another output.")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise DdpError(f"'{parent}' is not a folder.", f"'{path}' cannot be created there.")


@contextmanager
def reserve_output(path: Path, overwrite: bool, markers: tuple[str, ...] = ()) -> Iterator[None]:
    """`check_output`, and a lock on `path` inside the `with` block; DdpError if another process is writing `path`."""
    check_output(path, overwrite, markers)
    with lock_output(path):
        check_output(path, overwrite, markers)  # another process may have written it before it was locked
        yield


def sample_demos(task: str) -> Path | None:
    """The sample demonstrations of a task, in the current folder or in a source checkout; None outside of one."""
    folders = (Path("sample_data"), Path(__file__).parents[2] / "sample_data")
    return next((path for folder in folders if (path := folder / f"{task}.hdf5").is_file()), None)
