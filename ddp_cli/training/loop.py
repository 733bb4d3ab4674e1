"""The training loop: when to stop, what to record, and which checkpoints to keep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ddp_cli.config import TrainConfig
from ddp_cli.core.checkpoint import Meta, prune, save_checkpoint, update_link
from ddp_cli.errors import DdpError
from ddp_cli.training.dataloader import TrainingData
from ddp_cli.training.distributed import Processes
from ddp_cli.training.trainer import Trainer
from ddp_cli.training.validation import validate

TIMED_STEPS = 30  # of a run given in minutes: its rate is measured over these, the first 10 not counted
BAD_STEPS = 5  # in a row that are not finite: nothing good will follow


@dataclass(frozen=True)
class Progress:
    """Where training is. `loss` is the mean over the last steps, `rate` in steps/s."""

    step: int
    total: int
    loss: float
    lr: float
    rate: float


@dataclass
class Callbacks:
    """Who looks on: only the first of several processes reports, records and runs episodes.

    `report` is called after every step, `log` with numbers now and then, `rollouts` with a checkpoint whose
    success rate is wanted (None: it could not be measured), `should_stop` before every step.
    """

    report: Callable[[Progress], None] = lambda _: None
    log: Callable[[dict[str, float]], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    rollouts: Callable[[Path], float | None] = lambda _: None
    scores: dict[int, float] = field(default_factory=dict)
    """Success rate by step, as far as it is known; `train` adds to it."""


def plan_steps(
    config: TrainConfig, data: TrainingData, device: torch.device, processes: Processes
) -> tuple[int, float]:
    """How many steps the run has, and the measured steps/s (0 unless the run is given in minutes).

    For minutes a throw-away copy is trained for a few steps, and the rate decides.
    """
    if config.steps:
        return config.steps, 0.0
    if config.epochs:
        return max(1, round(config.epochs * len(data.train) / config.batch_size)), 0.0
    trainer = Trainer(config, data, device, processes, total=1_000_000)
    begun = started = time.perf_counter()
    for i in range(TIMED_STEPS):
        if i == TIMED_STEPS // 3:
            started = time.perf_counter()
        float(trainer.step()["total"])
    now = time.perf_counter()
    rate = (TIMED_STEPS - TIMED_STEPS // 3) / (now - started)
    steps = max(1, int((config.minutes * 60.0 - (now - begun)) * rate))
    return processes.from_first(lambda: (steps, rate))


class _StepMeter:
    """Means of what the steps return since the last look; nothing is read from the device before."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.rows: list[dict[str, Tensor]] = []
        self.clock, self.since = time.perf_counter(), trainer.step_number
        self.loss = math.nan

    @property
    def rate(self) -> float:
        return (self.trainer.step_number - self.since) / max(1e-9, time.perf_counter() - self.clock)

    def pause(self, began: float) -> None:
        """What was done since `began` was not training."""
        self.clock += time.perf_counter() - began

    def add(self, row: dict[str, Tensor]) -> None:
        self.rows.append(row)
        if math.isnan(self.loss):
            self.loss = float(row["noise"])

    def read(self) -> dict[str, float]:
        """Numbers for the record; DdpError after too many steps in a row that were not finite."""
        trainer = self.trainer
        means = {name: _mean([row[name] for row in self.rows]) for name in self.rows[0]}
        means = _mean_over(trainer.processes, means, trainer.share.stop - trainer.share.start)
        self.rows.clear()
        self.loss = means.pop("noise")
        means.pop("total")
        if trainer.safe_step.longest >= BAD_STEPS:
            raise DdpError(
                f"{BAD_STEPS} steps in a row were not finite (loss {self.loss:g} at step {trainer.step_number}); "
                "none of them changed the weights.",
                "The last checkpoint is good. Start a new run with a lower learning rate, --set lr=..., "
                "or --set clip_grad_norm=1.",
            )
        return {
            "loss": self.loss,
            **{name if name == "grad_norm" else f"{name}_loss": value for name, value in means.items()},
            "lr": trainer.lr,
            "ema_decay": float(trainer.ema.cur_decay_value or 0.0),
            "skipped_steps": float(trainer.safe_step.skipped),
            "steps_per_s": self.rate,
            "samples_per_s": self.rate * trainer.config.batch_size,
        }


def _mean(values: list[Tensor]) -> float:
    """Of those that are finite; infinite where none is."""
    stacked = torch.stack(values)
    finite = stacked[stacked.isfinite()]
    return float(finite.mean()) if len(finite) else math.inf


def _mean_over(processes: Processes, means: dict[str, float], samples: int) -> dict[str, float]:
    """Means over the global batch, of those over each process's `samples`."""
    found = processes.gather((samples, means))
    total = sum(n for n, _ in found)
    return {name: sum(n * m[name] for n, m in found) / total for name in means}


def train(trainer: Trainer, folder: Path, meta: Meta, watchers: Callbacks) -> Path | None:
    """Trains to `trainer.total` steps, or until `should_stop()`; returns the last checkpoint, None before any.

    Checkpoints go to `folder`: at every `checkpoint_every` steps, at the end, when stopped, and every
    `checkpoint_minutes` (of the last kind only the newest is kept).
    """
    config, first = trainer.config, trainer.processes.first
    every = checkpoint_every(config, trainer.total)
    log_every = max(1, min(50, trainer.total // 20))
    meter, saved, begun = _StepMeter(trainer), time.monotonic(), trainer.step_number
    while True:
        done = trainer.step_number
        overdue = done > begun and time.monotonic() - saved > config.checkpoint_minutes * 60.0
        asked = trainer.processes.any(watchers.should_stop())
        overdue = trainer.processes.any(first and overdue)
        stop = asked or done >= trainer.total
        due = done > 0 and (stop or overdue or done % every == 0)
        if meter.rows and (due or done % log_every == 0):
            numbers = meter.read()
            if first:
                watchers.log({"step": done, **numbers})
        if first and due:
            began = time.perf_counter()
            if done > begun:  # otherwise it is the one that training went on from
                _save(trainer, folder, meta, watchers, validating=not asked)
            update_link(folder / "last", checkpoint_path(folder, done))
            if config.eval_every and not asked and (done % config.eval_every == 0 or stop):
                _score(folder, done, watchers)
            _tidy(folder, done, every, config.keep, watchers.scores)
            saved = time.monotonic()
            meter.pause(began)
            if trainer.processes.count == 1:  # asked while episodes ran: they are run again on going on from here
                stop = stop or watchers.should_stop()
        if stop:
            return folder / "last" if done else None
        meter.add(trainer.step())
        if first:
            watchers.report(Progress(trainer.step_number, trainer.total, meter.loss, trainer.lr, meter.rate))


def checkpoint_every(config: TrainConfig, total: int) -> int:
    """Steps between the checkpoints that are kept: as told, as often as episodes are run, or ten in a run."""
    return config.checkpoint_every or config.eval_every or math.ceil(total / 10)


def _save(trainer: Trainer, folder: Path, meta: Meta, watchers: Callbacks, validating: bool) -> None:
    done = trainer.step_number
    numbers = validate(trainer) if validating else {}  # who asks to stop may not wait long
    if numbers:
        watchers.log({"step": done, **numbers})
    about: Meta = {**meta, "step": done, "total_steps": trainer.total}
    save_checkpoint(checkpoint_path(folder, done), trainer.config.policy, trainer.ema_weights(), about, trainer.state())


def _score(folder: Path, step: int, watchers: Callbacks) -> None:
    if step in watchers.scores:
        return
    score = watchers.rollouts(checkpoint_path(folder, step))
    if score is not None:
        watchers.scores[step] = score
        watchers.log({"step": step, "success_rate": score})


def _tidy(folder: Path, step: int, every: int, keep: int, scores: dict[int, float]) -> None:
    """Points to the `best`, removes what need not be kept."""
    best = step
    known = {s: score for s, score in scores.items() if checkpoint_path(folder, s).is_dir()}
    if known:
        best = max(known, key=lambda s: (known[s], s))  # of equals the later
    update_link(folder / "best", checkpoint_path(folder, best))
    prune(folder, every, keep, {step, best})


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is."""
    return folder / f"step-{step:08d}"
