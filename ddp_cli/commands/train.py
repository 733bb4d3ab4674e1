"""`ddp train`: a policy from a store."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import choices, console
from ddp_cli.commands import options
from ddp_cli.commands.report import update_run_page
from ddp_cli.commands.train_setup import TrainOptions, plan_new_run, plan_resumed_run, report_data, report_new_run
from ddp_cli.errors import DdpError

if TYPE_CHECKING:
    from ddp_cli.training.loop import Progress
    from ddp_cli.training.run import Run

EXAMPLES = options.examples(
    "ddp train --task lift --minutes 10", "ddp train --task square --obs state --set batch_size=256 --seed 1"
)
DATA, LENGTH, SETTINGS, RUN, MONITORING = "Data", "Length", "Settings", "Run", "Checkpoints and monitoring"


def train(
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "-t",
            help="Built-in task, or a JSON file that describes another. By default that of --data, or square.",
            show_default=False,
            rich_help_panel=options.SOURCE,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            help="Store to train on; data/TASK.zarr by default. With --resume: the store of the run, if it was moved.",
            show_default=False,
            rich_help_panel=options.SOURCE,
        ),
    ] = None,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified",
            help="Train even if the store's demonstrations failed their replay check.",
            rich_help_panel=options.SOURCE,
        ),
    ] = False,
    obs: Annotated[
        choices.Obs | None,
        typer.Option(
            "--obs",
            help="image (default): cameras; state: pose of the object.",
            show_default=False,
            rich_help_panel=SETTINGS,
        ),
    ] = None,
    preset: Annotated[
        choices.Preset | None,
        typer.Option(
            "--preset",
            help="By default paper on a GPU, otherwise laptop.",
            show_default=False,
            rich_help_panel=SETTINGS,
        ),
    ] = None,
    size: Annotated[
        choices.Size | None,
        typer.Option(
            "--size",
            help="Size of the networks of the laptop preset; s by default.",
            show_default=False,
            rich_help_panel=SETTINGS,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any hyper-parameter; may be repeated.",
            show_default=False,
            rich_help_panel=SETTINGS,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="JSON file of hyper-parameters.", show_default=False, rich_help_panel=SETTINGS),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            help="Seed of initialization, batches and noise; 42 by default.",
            show_default=False,
            rich_help_panel=SETTINGS,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Length in optimizer steps.", show_default=False, rich_help_panel=LENGTH),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            "--epochs", min=0.001, help="Length in passes over the data.", show_default=False, rich_help_panel=LENGTH
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            min=0.05,
            help="Length in minutes: the speed is measured, then the number of steps is fixed.",
            show_default=False,
            rich_help_panel=LENGTH,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of the run; date and time by default.", show_default=False, rich_help_panel=RUN
        ),
    ] = None,
    runs: Annotated[
        Path, typer.Option("--runs", help="Folder that holds all runs.", rich_help_panel=RUN)
    ] = options.RUNS,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the run --name, or the newest run of the task.", rich_help_panel=RUN),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            help="Checkpoint or run to take the initial weights from.",
            show_default=False,
            rich_help_panel=RUN,
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            "--eval-every",
            min=1,
            help="Steps between evaluations in the simulator; `best` is then chosen by success rate.",
            show_default=False,
            rich_help_panel=MONITORING,
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            min=1,
            help="Newest checkpoints to keep besides the best; 10 by default.",
            show_default=False,
            rich_help_panel=MONITORING,
        ),
    ] = None,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="Also log to Weights & Biases.", rich_help_panel=MONITORING)
    ] = False,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Train a diffusion policy.

    Ctrl-C, or a closed terminal, saves a checkpoint; --resume continues from it. Without a store, the sample
    demonstrations are converted first.
    """
    from ddp_cli.parallel import default_workers, preload_workers

    started = time.perf_counter()
    if default_workers() > 1 and "WORLD_SIZE" not in os.environ:  # torchrun has started all processes already
        preload_workers("ddp_cli.training.cpu_workers")

    from ddp_cli.core.checkpoint_lookup import newest_run
    from ddp_cli.data.store import Store
    from ddp_cli.inference.device import choose_device
    from ddp_cli.task_file import task_name
    from ddp_cli.training.cpu_workers import cpu_workers
    from ddp_cli.training.distributed import init_processes
    from ddp_cli.training.metrics import check_wandb

    if wandb:
        check_wandb()
    task = task or (Store(data).task.name if data else "square")
    overrides = {
        "steps": steps, "epochs": epochs, "minutes": minutes, "seed": seed, "eval_every": eval_every, "keep": keep,
    }  # fmt: skip
    with init_processes() as launched:
        if not launched.is_main:
            console.silence()
        torch_device = choose_device(launched.local_device(device))
        if resume:
            _reject_with_resume(
                **overrides, preset=preset, size=size, config=config, set=settings, init_from=init_from, obs=obs
            )
            folder = launched.run_on_main(lambda: runs / task_name(task) / name if name else newest_run(runs, task))
            planned = plan_resumed_run(folder, data, task, torch_device, launched)
        else:
            changes = {key: value for key, value in overrides.items() if value is not None}
            train_options = TrainOptions(
                task, obs or "image", preset, size, config, settings or [], changes, data, allow_unverified, runs, name,
                init_from,
            )  # fmt: skip
            planned = plan_new_run(train_options, torch_device, launched)
        with cpu_workers(planned.config, torch_device, launched, planned.start) as processes:
            run = planned.start(processes=processes)
            if resume:
                console.note(f"resuming {run.folder} at step {run.trainer.step_number} of {run.trainer.total}")
            else:
                report_new_run(run, size)
            report_data(run)
            checkpoint, complete = _run_training(run, task, str(torch_device), wandb)
    _report(run, checkpoint, complete, time.perf_counter() - started, json)


def _run_training(run: Run, task: str, device: str, wandb: bool) -> tuple[Path | None, bool]:
    """The last checkpoint, None if there is none, and whether nothing is left for --resume."""
    from ddp_cli.training.loop import Callbacks
    from ddp_cli.training.rollouts import make_evaluator
    from ddp_cli.training.run import run_training
    from ddp_cli.training.stop_signals import stop_on_signal

    with stop_on_signal() as should_stop, console.progress(f"train {task}") as update:

        def show_progress(p: Progress) -> None:
            rate = f"{p.rate:.1f} steps/s, {p.rate * run.trainer.config.batch_size:.0f} samples/s"
            update(p.step, p.total, f"loss {p.loss:.4f}, lr {p.lr:.1e}, {rate}")

        evaluate = make_evaluator(run, device, should_stop)

        def evaluate_and_report(checkpoint: Path) -> float | None:
            success_rate = evaluate(checkpoint)
            update_run_page(run.folder)
            return success_rate

        callbacks = Callbacks(on_progress=show_progress, should_stop=should_stop, evaluate=evaluate_and_report)
        checkpoint = run_training(run, callbacks, wandb)
        step, config = run.trainer.step_number, run.trainer.config
        is_main = run.trainer.processes.is_main  # only this one evaluates
        unevaluated = is_main and bool(config.eval_every) and should_stop() and step not in callbacks.success_rates
        return checkpoint, step >= run.trainer.total and not unevaluated


def _report(run: Run, checkpoint: Path | None, complete: bool, seconds: float, json: bool) -> None:
    """Prints the result; KeyboardInterrupt if the run was stopped before its end."""
    from ddp_cli.checkpoint_files import follow_link
    from ddp_cli.training.resume_command import resume_command

    command = f"`{resume_command(run.folder)}`"
    if checkpoint is None:
        console.note(f"stopped before the first step; start it with {command}")
        raise KeyboardInterrupt
    if not complete:
        console.note(f"saved {follow_link(checkpoint).resolve()}; resume with {command}")
        raise KeyboardInterrupt
    skipped = int(run.trainer.safe_step.skipped)
    if skipped:
        console.warn(f"{skipped} steps with non-finite gradients were skipped")
    if json:
        console.print_json(
            {
                "run": str(run.folder), "checkpoint": str(checkpoint), "steps": run.trainer.total,
                "skipped_steps": skipped, "seconds": seconds, "demonstrations": run.trainer.data.n_episodes,
                "demonstrations_used": run.trainer.data.n_used, "windows": len(run.trainer.data.train),
            }
        )  # fmt: skip
        return
    console.result(f"{checkpoint}: {run.trainer.total} steps in {console.duration(seconds)}")
    folder = shlex.quote(str(run.folder))
    if run.trainer.config.policy.task.simulator is None:
        console.note(f"Next: `ddp export {folder} --out policy`.")
    else:
        console.note(f"Next: `ddp eval {folder}`, or `ddp rollout {folder} --video out.mp4`.")


def _reject_with_resume(**values: object) -> None:
    options_given = [f"--{key.replace('_', '-')}" for key, value in values.items() if value not in (None, [])]
    if options_given:
        raise DdpError(
            f"{options_given[0]} does not go with --resume.",
            "A resumed run keeps its settings; start a new run to change them.",
        )
