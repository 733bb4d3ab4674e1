from __future__ import annotations

import json
import math
import time
import weakref
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from training.run_helpers import CPU, create, ignore_message, release, resume, saved_steps

from ddp_cli.checkpoint_files import TRAIN_STATE, list_checkpoints
from ddp_cli.core.checkpoint import load_policy
from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError
from ddp_cli.training import run_length
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.distributed import Processes
from ddp_cli.training.loop import MAX_CONSECUTIVE_SKIPS, Callbacks
from ddp_cli.training.run import run_training
from ddp_cli.training.run_length import plan_steps
from ddp_cli.training.trainer import Trainer


def test_training_stops_after_several_consecutive_non_finite_steps(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(steps=40, checkpoint_every=4), lift_store)
    sample = run.trainer.policy.sample_training_noise
    nan_steps = range(2, 2 + MAX_CONSECUTIVE_SKIPS - 1)

    def sample_with_nan(*args: object, **kwargs: object):
        noise = sample(*args, **kwargs)
        if run.trainer.step_number in nan_steps:
            noise.noise.fill_(math.nan)
        return noise

    run.trainer.policy.sample_training_noise = sample_with_nan
    # Four in a row: training continues.
    run_training(run, Callbacks(should_stop=lambda: run.trainer.step_number == 10))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert logged[-1]["skipped_steps"] == MAX_CONSECUTIVE_SKIPS - 1
    assert math.isfinite(logged[-1]["loss"])
    release(run)
    run = resume(tmp_path / "run")
    assert int(run.trainer.safe_step.skipped) == MAX_CONSECUTIVE_SKIPS - 1
    sample, nan_steps = run.trainer.policy.sample_training_noise, range(13, 99)
    run.trainer.policy.sample_training_noise = sample_with_nan
    message = f"{MAX_CONSECUTIVE_SKIPS} steps in a row had a non-finite gradient.*last checkpoint is intact"
    with pytest.raises(DdpError, match=message):
        run_training(run, Callbacks())
    policy, _ = load_policy(list_checkpoints(tmp_path / "run")[-1])
    assert all(torch.isfinite(p).all() for p in policy.parameters())


def test_the_newest_checkpoints_and_the_best_are_kept(lift_store: Store, tmp_path: Path) -> None:
    config = tiny_config(steps=12, eval_every=2, keep=2)
    run = create(tmp_path / "run", config, lift_store)
    success_rates = {2: 0.1, 4: 0.9, 6: 0.2, 8: None, 10: 0.9, 12: 0.3}
    evaluated = []

    def evaluate(checkpoint: Path) -> float | None:
        load_policy(checkpoint)
        evaluated.append(int(checkpoint.name[5:]))
        return success_rates[evaluated[-1]]

    run_training(run, Callbacks(evaluate=evaluate, should_stop=lambda: run.trainer.step_number == 9))
    assert evaluated == [2, 4, 6, 8]
    assert saved_steps(tmp_path / "run") == [4, 6, 8, 9]
    best = tmp_path / "run/checkpoints/best"
    assert best.resolve().name == "step-00000004"
    release(run)
    run_training(resume(tmp_path / "run"), Callbacks(evaluate=evaluate))
    assert evaluated == [2, 4, 6, 8, 10, 12]
    assert best.resolve().name == "step-00000010"  # the later of equals
    assert saved_steps(tmp_path / "run") == [10, 12]
    assert (tmp_path / "run/checkpoints/last").resolve().name == "step-00000012"


def test_a_checkpoint_is_saved_when_the_last_one_is_old(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(steps=5, checkpoint_minutes=1e-9, keep=1), lift_store)
    history = []
    run_training(run, Callbacks(on_progress=lambda p: history.append((p.step, saved_steps(tmp_path / "run")))))
    assert history[1:] == [(2, [1]), (3, [2]), (4, [3]), (5, [4])]


def test_stopping_before_the_first_step_saves_nothing(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(), lift_store)
    assert run_training(run, Callbacks(should_stop=lambda: True)) is None
    assert list_checkpoints(tmp_path / "run") == []


def test_checkpoints_hold_the_ema_weights(trained: Path) -> None:
    folder = (trained / "lift/tiny/checkpoints/best").resolve()
    policy, _ = load_policy(folder)
    state = torch.load(folder / TRAIN_STATE, weights_only=True)
    for shadow, parameter in zip(state["ema"], policy.parameters(), strict=True):
        assert torch.equal(shadow, parameter)


def test_metrics_are_recorded(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    for name in ("grad_norm", "action_loss", "object_loss", "samples_per_s"):
        assert all(line[name] > 0 for line in lines if "loss" in line)
    validation = [line for line in lines if "val_loss" in line]
    assert validation
    assert all(math.isfinite(line[name]) for line in validation for name in ("val_loss", "position_error_mm"))
    assert list(run.glob("events.out.tfevents.*"))


def test_minutes_and_epochs_are_converted_to_steps(lift_store: Store) -> None:
    data = load_training_data(tiny_config(), lift_store, CPU, ignore_message)

    def plan(**lengths: float) -> tuple[int, float]:
        return plan_steps(tiny_config(steps=0, **lengths), data, CPU, Processes())

    assert plan(epochs=2)[0] == round(2 * len(data.train) / 4)
    total, rate = plan(minutes=1)
    assert 0.5 < total / (rate * 60) <= 1.0


def test_slow_steps_are_measured_for_a_share_of_the_run(lift_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    class SlowTrainer(Trainer):
        def step(self) -> dict[str, torch.Tensor]:
            time.sleep(0.2)
            steps.append(self)
            return super().step()

    monkeypatch.setattr(run_length, "Trainer", SlowTrainer)
    data = load_training_data(tiny_config(), lift_store, CPU, ignore_message)
    total, rate = plan_steps(tiny_config(steps=0, minutes=0.1), data, CPU, Processes())
    assert len(steps) <= 5
    assert 1 < rate < 5
    assert total > 10


def test_the_trainer_that_measures_the_rate_is_freed(lift_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a CUDA graph, which refers to it."""
    trainers = []

    class TrainerInCycle(Trainer):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            self.itself = self
            trainers.append(weakref.ref(self))

    monkeypatch.setattr(run_length, "Trainer", TrainerInCycle)
    data = load_training_data(tiny_config(), lift_store, CPU, ignore_message)
    plan_steps(tiny_config(steps=0, minutes=1), data, CPU, Processes())
    assert [trainer() for trainer in trainers] == [None]
