"""`ddp collect`: demonstrations by scripted policies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.seeds import FIRST_SEED, MAX_SEED, purposes_of_seeds

if TYPE_CHECKING:
    from ddp_cli.data.collection import CollectionResult
    from ddp_cli.tasks import Task

EXAMPLES = options.examples(
    "ddp collect --task lift --episodes 20 --out lift.hdf5", "ddp collect --task square -n 100 --seed 5000"
)


def collect(
    task: options.Task = "square",
    robot: Annotated[
        str,
        typer.Option(
            "--robot",
            help="Arm that acts: Panda or IIWA; the task is then called lift_iiwa, and so on.",
            rich_help_panel="Content",
        ),
    ] = "Panda",
    episodes: Annotated[
        int,
        typer.Option("--episodes", "-n", min=1, help="Successful demonstrations to record.", rich_help_panel="Content"),
    ] = 100,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            min=0,
            max=MAX_SEED,
            help="Seed of the first episode; following episodes count up.",
            rich_help_panel="Content",
        ),
    ] = FIRST_SEED["collect"],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="HDF5 file to write.", rich_help_panel=options.OUTPUT)
    ] = Path("demos.hdf5"),
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    workers: options.Workers = None,
) -> None:
    """Record demonstrations of a scripted policy.

    The output is an HDF5 file in robomimic's layout. Finished demonstrations are kept after an interruption or an
    error; the same command, or one with a larger -n, continues.
    """
    from dataclasses import asdict

    from ddp_cli.task_file import read_task
    from ddp_cli.tasks import with_robot

    started = time.perf_counter()
    with options.reserve_output(out, overwrite):
        _warn_of_seeds(range(seed, seed + episodes))
        described = read_task(task)
        described = with_robot(described, robot) if robot != "Panda" else described
        result = run_collection(described, episodes, out, seed, workers)
    seconds = time.perf_counter() - started
    if json:
        console.print_json({"out": str(out), **asdict(result), "seconds": seconds})
        return
    console.result(
        f"{out}: {result.demos} demonstrations of {described.name}, {result.steps} steps, "
        f"{result.failures} of {result.attempts} attempts failed, in {console.duration(seconds)}"
    )


def _warn_of_seeds(seeds: range) -> None:
    if set(purposes_of_seeds(seeds)) - {"collect"}:
        console.warn(
            f"the seeds {seeds.start} to {seeds.stop - 1} are also those of evaluations, from {FIRST_SEED['eval']} on: "
            "a policy would be measured on the initial states of its demonstrations. Choose a smaller --seed."
        )


def run_collection(
    task: Task, episodes: int, out: Path, seed: int = FIRST_SEED["collect"], workers: int | None = None
) -> CollectionResult:
    """`data.collection.collect` with a progress bar."""
    from ddp_cli.data.collection import collect as collect_demos
    from ddp_cli.parallel import default_workers

    with console.progress(f"collect {task.name}") as update:
        return collect_demos(
            task, episodes, out, seed, workers or default_workers(),
            lambda demos, attempts, failures: update(demos, episodes, f"{failures} of {attempts} attempts failed"),
        )  # fmt: skip
