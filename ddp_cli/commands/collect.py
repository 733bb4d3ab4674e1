"""`ddp collect`: demonstrations made by a scripted demonstrator."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console
from ddp_cli.choices import FIRST_SEED
from ddp_cli.commands import options


def collect(
    task: options.Task = "square",
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Successful demos to keep.")] = 100,
    out: Annotated[Path, typer.Option("--out", "-o", help="HDF5 file to write.")] = Path("demos.hdf5"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="First start; counts upward.")] = FIRST_SEED["collect"],
    workers: options.Workers = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Record scripted demonstrations (robomimic's raw layout). Run again after Ctrl-C to go on."""
    from dataclasses import asdict

    from ddp_cli.data.collection import collect as collect_demos
    from ddp_cli.parallel import default_workers
    from ddp_cli.tasks import read_task

    spec = read_task(task)
    options.check_output(out, overwrite)
    started = time.perf_counter()
    with console.progress(f"collect {task}") as update:
        done = collect_demos(
            spec, episodes, out, seed, workers or default_workers(),
            lambda demos, attempts, failures: update(demos, episodes, f"{failures} failed of {attempts}"),
        )  # fmt: skip
    seconds = time.perf_counter() - started
    if json:
        console.print_json({"out": str(out), **asdict(done), "seconds": seconds})
        return
    console.result(
        f"{out}: {done.demos} demos of {task}, {done.steps} steps, {done.failures} of {done.attempts} attempts failed, "
        f"in {console.duration(seconds)}"
    )
