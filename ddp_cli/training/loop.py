"""The training loop: when to stop, which metrics to log, and when to save and evaluate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ddp_cli.checkpoint_files import checkpoint_path
from ddp_cli.core.checkpoint import Meta, save_checkpoint
from ddp_cli.disk import replace_link
from ddp_cli.errors import DdpError
from ddp_cli.training.checkpoint_retention import checkpoint_interval, link_best_checkpoint, prune_checkpoints
from ddp_cli.training.distributed import Processes
from ddp_cli.training.trainer import Trainer
from ddp_cli.training.validation import validate

MAX_CONSECUTIVE_SKIPS = 5  # skipped (non-finite) steps in a row after which training has diverged


@dataclass(frozen=True)
class Progress:
    """State of the training. `loss` is the mean over the last logged steps, `rate` in steps/s."""

    step: int
    total: int
    loss: float
    lr: float
    rate: float


@dataclass
class Callbacks:
    """Functions that `train` calls; with several processes, all but `should_stop` only in the main one."""

    on_progress: Callable[[Progress], None] = lambda _: None
    """After every step."""
    on_metrics: Callable[[dict[str, float]], None] = lambda _: None
    """With metrics to record; one of them is the `step`."""
    should_stop: Callable[[], bool] = lambda: False
    """Before every step; true saves a checkpoint and stops."""
    evaluate: Callable[[Path], float | None] = lambda _: None
    """The success rate of a checkpoint, or None if it could not be measured; called every `eval_every` steps."""
    success_rates: dict[int, float] = field(default_factory=dict)
    """Success rates measured so far, by step; `train` adds to them."""


class _StepMetrics:
    """Averages the losses of the steps since the last log; until then nothing is copied from the device."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.pending: list[dict[str, Tensor]] = []
        self.started, self.first_step = time.perf_counter(), trainer.step_number
        self.loss = math.nan

    @property
    def rate(self) -> float:
        """Training steps/s since the start."""
        return (self.trainer.step_number - self.first_step) / max(1e-9, time.perf_counter() - self.started)

    def exclude_since(self, time_stamp: float) -> None:
        """Exclude the time since `time_stamp` from the rate: it was not spent on training."""
        self.started += time.perf_counter() - time_stamp

    def add(self, losses: dict[str, Tensor]) -> None:
        self.pending.append(losses)
        if math.isnan(self.loss):
            self.loss = float(losses["noise"])

    def average(self) -> dict[str, float]:
        """The metrics to log; DdpError after too many non-finite steps in a row."""
        trainer = self.trainer
        means = {name: _finite_mean([losses[name] for losses in self.pending]) for name in self.pending[0]}
        means = _average_over(trainer.processes, means, trainer.shard.stop - trainer.shard.start)
        self.pending.clear()
        self.loss = means.pop("noise")
        means.pop("total")
        if trainer.safe_step.max_consecutive_skips >= MAX_CONSECUTIVE_SKIPS:
            raise DdpError(
                f"{MAX_CONSECUTIVE_SKIPS} steps in a row had a non-finite gradient and were skipped "
                f"(loss {self.loss:g} at step {trainer.step_number}).",
                "The last checkpoint is intact. Start a new run with a lower learning rate, --set lr=..., "
                "or with gradient clipping, --set clip_grad_norm=1.",
            )
        return {
            "loss": self.loss,
            **{name if name == "grad_norm" else f"{name}_loss": value for name, value in means.items()},
            "lr": trainer.lr,
            "ema_decay": trainer.ema.decay,
            "skipped_steps": float(trainer.safe_step.skipped),
            "steps_per_s": self.rate,
            "samples_per_s": self.rate * trainer.config.batch_size,
        }


def _finite_mean(values: list[Tensor]) -> float:
    """The mean of the finite values, infinity if there are none."""
    stacked = torch.stack(values)
    finite = stacked[stacked.isfinite()]
    return float(finite.mean()) if len(finite) else math.inf


def _average_over(processes: Processes, means: dict[str, float], n_samples: int) -> dict[str, float]:
    """Means over the global batch, from the means over the `n_samples` samples of each process."""
    gathered = processes.gather((n_samples, means))
    total = sum(n for n, _ in gathered)
    return {name: sum(n * process_means[name] for n, process_means in gathered) / total for name in means}


def train(trainer: Trainer, run: Path, meta: Meta, callbacks: Callbacks) -> Path | None:
    """Train to `trainer.total` steps or until `should_stop()`; returns the last checkpoint, None if there is none.

    Checkpoints are saved in `run` every `checkpoint_every` steps, at the end, when stopped, and every
    `checkpoint_minutes` (of the last kind only the newest is kept).
    """
    config, is_main = trainer.config, trainer.processes.is_main
    interval = checkpoint_interval(config, trainer.total)
    log_every = max(1, min(50, trainer.total // 20))
    metrics, saved_at, first_step = _StepMetrics(trainer), time.monotonic(), trainer.step_number
    last = run / "checkpoints" / "last"
    while True:
        step = trainer.step_number
        overdue = step > first_step and time.monotonic() - saved_at > config.checkpoint_minutes * 60.0
        interrupted = trainer.processes.any(callbacks.should_stop())
        overdue = trainer.processes.any(is_main and overdue)
        stop = interrupted or step >= trainer.total
        save = step > 0 and (stop or overdue or step % interval == 0)
        if metrics.pending and (save or step % log_every == 0):
            averages = metrics.average()
            if is_main:
                callbacks.on_metrics({"step": step, **averages})
        if is_main and save:
            started = time.perf_counter()
            if step > first_step:  # otherwise it is the checkpoint that training resumed from
                _save(trainer, run, meta, callbacks, with_validation=not interrupted)
            replace_link(last, checkpoint_path(run, step))
            if config.eval_every and not interrupted and (step % config.eval_every == 0 or stop):
                _evaluate(run, step, callbacks)
            best = link_best_checkpoint(run, step, callbacks.success_rates)
            prune_checkpoints(run, interval, config.keep, {step, best})
            saved_at = time.monotonic()
            metrics.exclude_since(started)
        if save:  # an evaluation that was interrupted is repeated on resume, so no further step is made
            stop = trainer.processes.any(stop or callbacks.should_stop())
        if stop:
            return last if step else None
        metrics.add(trainer.step())
        if is_main:
            callbacks.on_progress(Progress(trainer.step_number, trainer.total, metrics.loss, trainer.lr, metrics.rate))


def _save(trainer: Trainer, run: Path, meta: Meta, callbacks: Callbacks, with_validation: bool) -> None:
    """Save a checkpoint. Validation is left out when the user interrupts and waits for the process to end."""
    step = trainer.step_number
    validation = validate(trainer) if with_validation else {}
    if validation:
        callbacks.on_metrics({"step": step, **validation})
    content: Meta = {**meta, "step": step, "total_steps": trainer.total}
    save_checkpoint(checkpoint_path(run, step), trainer.config.policy, trainer.ema_weights(), content, trainer.state())


def _evaluate(run: Path, step: int, callbacks: Callbacks) -> None:
    if step in callbacks.success_rates:
        return
    success_rate = callbacks.evaluate(checkpoint_path(run, step))
    if success_rate is not None:
        callbacks.success_rates[step] = success_rate
        callbacks.on_metrics({"step": step, "success_rate": success_rate})
