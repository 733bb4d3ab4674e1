"""Short forms for tests that create, resume and compare small runs on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddp_cli.checkpoint_files import checkpoint_step, list_checkpoints
from ddp_cli.data.store import Store
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.resume import resume_run
from ddp_cli.training.run import Run, create_run, run_training

CPU = torch.device("cpu")


def ignore_message(_text: str) -> None:
    pass


def create(folder: Path, config: TrainConfig, store: Store, **kwargs: object) -> Run:
    return create_run(folder, config, store, CPU, ignore_message, **kwargs)


def resume(folder: Path, warn=pytest.fail) -> Run:
    return resume_run(folder, CPU, warn, ignore_message)


def release(run: Run) -> Run:
    """Unlock a run, as the end of its process does."""
    run.lock.release()
    return run


def train_new_run(store: Store, folder: Path, config: TrainConfig, stop_at: int | None = None) -> Run:
    run = create(folder, config, store)
    run_training(run, Callbacks(should_stop=lambda: run.trainer.step_number == stop_at))
    return release(run)


def saved_steps(folder: Path) -> list[int]:
    return [checkpoint_step(path) for path in list_checkpoints(folder)]


def assert_equal_training_state(a: Run, b: Run) -> None:
    """Bit for bit: weights, EMA, moments of the optimizer."""
    one, two = a.trainer.state(), b.trainer.state()
    assert one["step"] == two["step"]
    assert one["ema_step"] == two["ema_step"]
    assert all(torch.equal(x, y) for x, y in zip(one["ema"], two["ema"], strict=True))
    assert all(torch.equal(x, two["objective"][k]) for k, x in one["objective"].items())
    for k, moments in one["optimizer"]["state"].items():
        assert all(torch.equal(x, two["optimizer"]["state"][k][name]) for name, x in moments.items())
