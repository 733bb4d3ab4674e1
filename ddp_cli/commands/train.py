"""`ddp train`: a store to a policy."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import DdpError
from ddp_cli.tasks import Task
from ddp_cli.training.rollouts import scorer

if TYPE_CHECKING:
    from ddp_cli.data.store import Store
    from ddp_cli.training.distributed import Processes
    from ddp_cli.training.loop import Progress
    from ddp_cli.training.run import Run


def train(
    curves_of: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="With --plot: the runs to draw.", show_default=False)
    ] = None,
    task: options.Task = "square",
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Store to train on; data/TASK.zarr by default.", show_default=False),
    ] = None,
    obs: Annotated[
        str | None,
        typer.Option("--obs", help="image (default): cameras; state: pose of the object.", show_default=False),
    ] = None,
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
    init_from: Annotated[
        Path | None, typer.Option("--init-from", help="Begin with the weights of a checkpoint.", show_default=False)
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            "--eval-every", min=1, help="Steps between evaluations; `best` is by success.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=1, help="Newest checkpoints to keep, besides the best; 10.", show_default=False),
    ] = None,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Train on a store whose demos did not do what they did.")
    ] = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Record to Weights & Biases as well.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the curves of runs, and do not train.")] = False,
    device: options.Device = "auto",
    runs: options.Runs = options.RUNS,
    json: options.Json = False,
) -> None:
    """Train a diffusion policy. Ctrl-C saves a checkpoint; --resume goes on from it."""
    if plot or curves_of:
        _plot(plot, curves_of or [])
        return
    from ddp_cli.inference.device import choose_device
    from ddp_cli.tasks import check_same_task, task_name
    from ddp_cli.training.distributed import processes
    from ddp_cli.training.loop import Callbacks
    from ddp_cli.training.metrics import check_wandb
    from ddp_cli.training.run import go, newest_run, resume_run

    started = time.perf_counter()
    if wandb:
        check_wandb()
    lengths = {"steps": steps, "epochs": epochs, "minutes": minutes}
    with processes() as together:
        if not together.first:
            console.mute()
        chosen = choose_device(together.device(device))
        if resume:
            _refuse_with_resume(
                **lengths, data=data, preset=preset, config=config, set=settings, init_from=init_from,
                eval_every=eval_every, keep=keep, obs=obs,
            )  # fmt: skip
            folder = together.from_first(lambda: runs / task_name(task) / name if name else newest_run(runs, task))
            run = resume_run(folder, chosen, console.warn, console.note, together)
            check_same_task(run.trainer.config.policy.task, task, folder)
            console.note(f"going on with {run.folder} at step {run.trainer.step_number} of {run.trainer.total}")
        else:
            given = {**lengths, "eval_every": eval_every, "keep": keep}
            run = _begin(
                task, obs or "image", preset, config, settings, given, data, runs, name, init_from, chosen, together,
                allow_unverified,
            )  # fmt: skip
        with _stoppable() as stopped, console.progress(f"train {task}") as update:

            def report(p: Progress) -> None:
                rate = f"{p.rate:.1f} steps/s, {p.rate * run.trainer.config.batch_size:.0f} samples/s"
                update(p.step, p.total, f"loss {p.loss:.4f}, lr {p.lr:.1e}, {rate}")

            watchers = Callbacks(report=report, should_stop=stopped, rollouts=scorer(run, str(chosen), stopped))
            checkpoint = go(run, watchers, wandb)
    where = "" if runs == options.RUNS else f" --runs {runs}"
    again = f"`ddp train --task {task} --name {run.folder.name}{where} --resume`"
    if checkpoint is None:
        console.note(f"stopped before the first step; begin with {again}")
        raise KeyboardInterrupt
    if run.trainer.step_number < run.trainer.total:
        console.note(f"saved {checkpoint.resolve()}; go on with {again}")
        raise KeyboardInterrupt
    seconds = time.perf_counter() - started
    skipped = int(run.trainer.safe_step.skipped)
    if skipped:
        console.warn(f"{skipped} steps were not finite and left out")
    if json:
        console.print_json(
            {
                "run": str(run.folder), "checkpoint": str(checkpoint), "steps": run.trainer.total,
                "skipped_steps": skipped, "seconds": seconds,
            }
        )  # fmt: skip
        return
    console.result(f"{checkpoint}: {run.trainer.total} steps in {console.duration(seconds)}")
    console.note(f"Next: `ddp eval {run.folder}`, or `ddp rollout {run.folder} --video out.mp4`.")


def _begin(
    task: str,
    obs: str,
    preset: str | None,
    config: Path | None,
    settings: list[str] | None,
    given: dict[str, float | None],
    data: Path | None,
    runs: Path,
    name: str | None,
    init_from: Path | None,
    device: object,
    together: Processes,
    allow_unverified: bool,
) -> Run:
    import torch

    from ddp_cli.config import read_json
    from ddp_cli.core.checkpoint import resolve_checkpoint
    from ddp_cli.data.store import Store, find_task
    from ddp_cli.presets import parse_settings, train_config
    from ddp_cli.training.run import create_run

    assert isinstance(device, torch.device)
    values = parse_settings(settings or []) | {k: v for k, v in given.items() if v is not None}
    preset = preset or ("paper" if device.type == "cuda" else "laptop")
    file = read_json(config) if config else None
    spec = find_task(task, data or options.known_store(task, obs))
    train_config(spec, obs, preset, file, values)  # refuse what is wrong before a store is made
    weights = resolve_checkpoint(init_from, runs) if init_from else None
    store = Store(data or together.from_first(lambda: _default_store(spec, obs)))
    _check_verified(store, allow_unverified)
    values.setdefault("actions", store.attrs["action"]["convention"])
    wanted = train_config(spec, obs, preset, file, values)
    folder = together.from_first(lambda: runs / spec.name / (name or time.strftime("%Y-%m-%d_%H-%M-%S")))
    run = create_run(folder, wanted, store, device, console.note, together, weights)
    rate = f" (measured: {run.rate:.1f} steps/s)" if run.rate else ""
    shared = f", {together.count} processes" if together.count > 1 else ""
    console.note(
        f"{folder}: preset {preset}, {obs} observations, {len(store.episode_ends)} demos, "
        f"{run.trainer.total} steps of {wanted.batch_size}{rate}, on {device}{shared}"
    )
    return run


def _check_verified(store: Store, allow: bool) -> None:
    """DdpError if the demos of `store` did something else here than where they were recorded."""
    from ddp_cli.data.replay_report import in_words

    if store.check["result"] == "failed" and not allow:
        raise DdpError(
            f"'{store.path}' failed its check: {store.check['why']}.",
            "A policy would learn to do something else. Add --allow-unverified to train all the same.",
        )
    console.note(f"{store.path}: check {in_words(store.check)}")


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM only make the function say yes; a second time they interrupt."""
    asked = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:  # the second time the user means it
            raise KeyboardInterrupt
        asked = True
        console.note("stopping: saving a checkpoint (press Ctrl-C again to stop without)")

    handlers = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _plot(plot: bool, folders: list[Path]) -> None:
    from ddp_cli.training.plots import draw

    if not plot or not folders:
        raise DdpError(
            "give --plot and the runs to draw together.", "For example `ddp train --plot runs/lift/a runs/lift/b`."
        )
    out = (folders[0] if len(folders) == 1 else folders[0].parent) / "curves.png"
    draw(folders, out)
    console.result(str(out))


def _refuse_with_resume(**given: object) -> None:
    names = [f"--{k.replace('_', '-')}" for k, v in given.items() if v]
    if names:
        raise DdpError(
            f"{names[0]} does not go with --resume.",
            "A resumed run keeps its settings; start a new one to change them.",
        )


def _default_store(task: Task, obs: str) -> Path:
    from ddp_cli.commands.convert import run_conversion
    from ddp_cli.data.conversion_plan import ConvertOptions

    store = options.known_store(task.name, obs)
    if not store.exists():
        source = options.sample_data() / f"{task.name}.hdf5"
        if not source.is_file():
            raise DdpError(
                f"no store '{store}' and no sample demos '{source}'.",
                "Name a store with --data, or make one with `ddp convert`.",
            )
        console.note(f"no {store}: converting the sample demos {source} first")
        done = run_conversion(source, store, ConvertOptions(obs), task=task)
        console.note(f"{store}: {done.episodes} episodes, {done.frames} steps")
    return store
