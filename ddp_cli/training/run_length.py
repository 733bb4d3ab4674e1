"""The length of a run in steps, from steps, epochs or minutes."""

from __future__ import annotations

import gc
import time

import torch

from ddp_cli.train_config import TrainConfig
from ddp_cli.training.dataloader import TrainingData
from ddp_cli.training.distributed import Processes
from ddp_cli.training.trainer import Trainer

TIMED_STEPS, TIMED_STEPS_CUDA = 30, 300  # that measure the rate of a run given in minutes; the first third is warm-up
MIN_TIMED_STEPS = 3
MEASURED_SHARE = 0.1  # of the length of the run, after which fewer steps are timed


def plan_steps(
    config: TrainConfig, data: TrainingData, device: torch.device, processes: Processes
) -> tuple[int, float]:
    """The length of the run in steps, and the measured steps/s (0 unless the length is given in minutes).

    For a length in minutes, a temporary trainer runs a few steps to measure the rate.
    """
    if config.steps:
        return config.steps, 0.0
    if config.epochs:
        return max(1, round(config.epochs * len(data.train) / config.batch_size)), 0.0
    rate, seconds = _measure_rate(config, data, device, processes)
    gc.collect()  # a trainer with a CUDA graph is in a reference cycle, and holds memory that the run needs
    steps = max(1, int((config.minutes * 60.0 - seconds) * rate))
    return processes.run_on_main(lambda: (steps, rate))


def _measure_rate(
    config: TrainConfig, data: TrainingData, device: torch.device, processes: Processes
) -> tuple[float, float]:
    """Steps/s of a temporary trainer, and the seconds that it took to measure them."""
    trainer = Trainer(config, data, device, processes, total=1_000_000)
    started = time.perf_counter()
    n_steps = TIMED_STEPS_CUDA
    if device.type != "cuda":  # there, the first steps record graphs
        float(trainer.step()["total"])
        seconds = time.perf_counter() - started
        affordable = int(MEASURED_SHARE * config.minutes * 60.0 / seconds)
        n_steps = processes.run_on_main(lambda: max(MIN_TIMED_STEPS, min(TIMED_STEPS, affordable)))
    measured_from = time.perf_counter()
    for i in range(n_steps):
        loss = trainer.step()["total"]
        if i == n_steps // 3 - 1:
            float(loss)  # waits for the device
            measured_from = time.perf_counter()
    float(loss)
    now = time.perf_counter()
    return (n_steps - n_steps // 3) / (now - measured_from), now - started
