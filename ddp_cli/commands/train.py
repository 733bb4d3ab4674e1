"""`ddp train`: a store to a policy."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from ddp_cli import console, options
from ddp_cli.errors import DdpError
from ddp_cli.tasks import Task


def train(
    task: options.Task = "square",
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Store to train on; data/TASK.zarr by default.", show_default=False),
    ] = None,
    obs: Annotated[str, typer.Option("--obs", help="image: cameras; state: pose of the object.")] = "image",
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="paper or laptop; by default laptop without a GPU.", show_default=False),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Length of the run in optimiser steps.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0.001, help="... in passes over the data.")] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.05, help="... in minutes; the rate is measured first.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value for any hyper-parameter; may be repeated.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="JSON file of hyper-parameters.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; date and time by default.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run --name, or the newest one of the task.")
    ] = False,
    device: options.Device = "auto",
    runs: options.Runs = options.RUNS,
    json: options.Json = False,
) -> None:
    """Train a diffusion policy. Ctrl-C saves a checkpoint; --resume goes on from it."""
    from ddp_cli.config import read_json, train_config
    from ddp_cli.core.run import choose_device, create_run, go, newest_run, reopen_run
    from ddp_cli.data.store import Store, find_task
    from ddp_cli.tasks import check_described, task_name

    started = time.perf_counter()
    stopped = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:  # the second time the user means it
            raise KeyboardInterrupt
        stopped = True
        console.note("stopping: saving a checkpoint (press Ctrl-C again to stop without)")

    chosen = choose_device(device)
    if resume:
        _refuse_with_resume(
            steps=steps, epochs=epochs, minutes=minutes, data=data, preset=preset, config=config, set=settings
        )
        folder = runs / task_name(task) / name if name else newest_run(runs, task)
        run = reopen_run(folder, chosen, console.warn)
        check_described(run.trainer.config.policy.task, task, folder)
        console.note(f"going on with {run.folder} at step {run.trainer.step_number} of {run.trainer.total}")
    else:
        values = _settings(settings, steps=steps, epochs=epochs, minutes=minutes)
        preset = preset or ("paper" if chosen.type == "cuda" else "laptop")
        given = read_json(config) if config else None
        spec = find_task(task, data or options.DATA / f"{task}.zarr")
        train_config(spec, obs, preset, given, values)  # refuse what is wrong before a store is made
        store = Store(data or _default_store(spec))
        values.setdefault("actions", store.attrs["action"]["convention"])
        wanted = train_config(spec, obs, preset, given, values)
        folder = runs / spec.name / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))
        run = create_run(folder, wanted, store, chosen)
        rate = f" (measured: {run.rate:.1f} steps/s)" if run.rate else ""
        console.note(
            f"{folder}: preset {preset}, {obs} observations, {len(store.episode_ends)} demos, "
            f"{run.trainer.total} steps of {wanted.batch_size}{rate}, on {chosen}"
        )
    handlers = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with console.progress(f"train {task}") as update:
            checkpoint = go(
                run,
                lambda p: update(p.step, p.total, f"loss {p.loss:.4f}, lr {p.lr:.1e}, {p.rate:.1f} steps/s"),
                lambda: stopped,
            )
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if checkpoint is None:
        console.note(
            f"stopped before the first step; begin with `ddp train --task {task} --name {run.folder.name} --resume`"
        )
        raise KeyboardInterrupt
    if stopped:
        console.note(
            f"saved {checkpoint.resolve()}; go on with `ddp train --task {task} --name {run.folder.name} --resume`"
        )
        raise KeyboardInterrupt
    seconds = time.perf_counter() - started
    if json:
        console.print_json(
            {"run": str(run.folder), "checkpoint": str(checkpoint), "steps": run.trainer.total, "seconds": seconds}
        )
        return
    console.result(f"{checkpoint}: {run.trainer.total} steps in {console.duration(seconds)}")
    console.note("Next: `ddp eval`, or `ddp rollout --video out.mp4`.")


def _settings(pairs: list[str] | None, **lengths: float | None) -> dict[str, object]:
    from ddp_cli.config import parse_settings

    return parse_settings(pairs or []) | {k: v for k, v in lengths.items() if v is not None}


def _refuse_with_resume(**given: object) -> None:
    names = [f"--{k}" for k, v in given.items() if v]
    if names:
        raise DdpError(
            f"{names[0]} does not go with --resume.",
            "A resumed run keeps its settings; start a new one to change them.",
        )


def _default_store(task: Task) -> Path:
    from ddp_cli.commands.convert import run_conversion

    store = options.DATA / f"{task.name}.zarr"
    if not store.exists():
        source = options.sample_data() / f"{task.name}.hdf5"
        if not source.is_file():
            raise DdpError(
                f"no store '{store}' and no sample demos '{source}'.",
                "Name a store with --data, or make one with `ddp convert`.",
            )
        console.note(f"no {store}: converting the sample demos {source} first")
        done = run_conversion(source, store, "fast", None, task=task)
        console.note(f"{store}: {done.episodes} episodes, {done.frames} steps")
    return store
