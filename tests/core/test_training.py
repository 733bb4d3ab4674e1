from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOOR, TINY, tiny_config

from ddp_cli.config import TrainConfig, train_config
from ddp_cli.core.checkpoint import TRAIN_STATE, checkpoints, load_policy, load_train_state
from ddp_cli.core.run import Run, create_run, go, reopen_run
from ddp_cli.core.training import Trainer, learning_rate, planned_steps
from ddp_cli.data.store import Store, StoreWriter
from ddp_cli.errors import ConfigError, DataError, DdpError
from ddp_cli.tasks import get_task, task_from_json

STORED = np.load(Path(__file__).parents[1] / "data" / "windows_ema.npz")
CPU = torch.device("cpu")


def trainer(store: Store, **changes: object) -> Trainer:
    t = Trainer(tiny_config(**changes), store, CPU)
    t.total = 8
    return t


def run_of(store: Store, folder: Path, config: TrainConfig, stop_at: int | None = None) -> Run:
    run = create_run(folder, config, store, CPU)
    go(run, lambda _: None, lambda: run.trainer.step_number == stop_at)
    return run


def test_ema_decays_are_the_published_ones(lift_store: Store) -> None:
    t = trainer(lift_store)
    applied = []
    for _ in range(4):
        before = t.ema.shadow_params[0].clone()
        t.step()
        now, raw = t.ema.shadow_params[0], next(iter(t.policy.parameters()))
        moved, whole = (now - before).norm(), (raw.detach() - before).norm()
        applied.append(1.0 - float(moved / whole))
    assert applied == pytest.approx([0.0, 0.0, 0.4054, 0.5613], abs=1e-3)
    # diffusers counts the step first: its decay of step n + 1 is the published one after n steps
    for steps, decay in zip(STORED["ema_steps"], STORED["ema_decay"], strict=True):
        assert t.ema.get_decay(int(steps) + 1) == pytest.approx(decay, abs=1e-9)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = tiny_config(lr=1.0, warmup_steps=1000)
    assert learning_rate(config, 0, 100_000) == pytest.approx(1e-3)
    assert learning_rate(config, 999, 100_000) == pytest.approx(1.0)
    assert learning_rate(config, 50_500, 100_000) == pytest.approx(0.5, abs=1e-6)
    assert learning_rate(config, 100_000, 100_000) == pytest.approx(0.0)
    assert learning_rate(config, 4, 100) == pytest.approx(1.0)  # warm-up is 5% of a short run


def test_training_lowers_the_loss(lift_store: Store) -> None:
    t = trainer(lift_store, batch_size=16, n_emb=32, lr=3e-3, obs="state")
    t.total = 150
    losses = [float(t.step()) for _ in range(150)]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])


def test_auxiliary_losses_reach_the_encoder_but_not_the_policy(lift_store: Store) -> None:
    plain = trainer(lift_store, object_loss=0.0, action_loss=0.0)
    helped = trainer(lift_store, object_loss=1.0, action_loss=1.0)
    assert plain.policy.state_dict().keys() == helped.policy.state_dict().keys()
    for t in (plain, helped):
        t.step()
    key = next(n for n, _ in plain.policy.named_parameters() if n.startswith("encoders"))
    assert not torch.equal(plain.policy.state_dict()[key], helped.policy.state_dict()[key])
    assert float(plain.step()) != float(helped.step())


@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_resumed_training_equals_uninterrupted_training(lift_store: Store, tmp_path: Path, stop_at: int) -> None:
    config = tiny_config(steps=8, object_loss=1.0)
    whole = run_of(lift_store, tmp_path / "whole", config)
    run_of(lift_store, tmp_path / "cut", config, stop_at)
    cut = reopen_run(tmp_path / "cut", CPU, pytest.fail)
    assert cut.trainer.step_number == stop_at
    go(cut, lambda _: None, lambda: False)
    for a, b in ((whole.trainer.state(), cut.trainer.state()),):
        assert a["ema_step"] == b["ema_step"] == 8
        for one, two in zip(a["ema"], b["ema"], strict=True):
            assert torch.equal(one, two)
        for key, value in a["policy"].items():
            assert torch.equal(value, b["policy"][key]), key


def test_resume_passes_over_a_damaged_checkpoint(lift_store: Store, tmp_path: Path) -> None:
    run_of(lift_store, tmp_path / "run", tiny_config(steps=4, checkpoint_every=2))
    newest = checkpoints(tmp_path / "run")[-1] / TRAIN_STATE
    newest.write_bytes(newest.read_bytes()[:1000])
    warnings: list[str] = []
    run = reopen_run(tmp_path / "run", CPU, warnings.append)
    assert run.trainer.step_number == 2
    assert "step-00000004" in warnings[0]
    go(run, lambda _: None, lambda: False)
    assert load_train_state(newest.parent)["step"] == 4  # and writes it anew
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.parametrize("settings", [{"obs_as_cond": False}, {"pred_action_steps_only": True}])
def test_every_branch_trains(lift_store: Store, settings: dict) -> None:
    t = trainer(lift_store, action_loss=1.0, **settings)
    assert math.isfinite(float(t.step()))


def test_a_horizon_longer_than_every_demo_is_refused(lift_store: Store) -> None:
    with pytest.raises(ConfigError, match="horizon 300.*longest has"):
        trainer(lift_store, horizon=300)


def test_weights_of_a_loss_that_is_not_finite_are_never_saved(lift_store: Store, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", tiny_config(steps=6, checkpoint_every=2), lift_store, CPU)
    step = run.trainer.step

    def poisoned() -> torch.Tensor:
        return step() * (math.nan if run.trainer.step_number == 4 else 1.0)

    run.trainer.step = poisoned
    with pytest.raises(DdpError, match="loss is nan at step 4"):
        go(run, lambda _: None, lambda: False)
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-00000002"]


def test_stopping_before_the_first_step_saves_nothing(lift_store: Store, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", tiny_config(), lift_store, CPU)
    assert go(run, lambda _: None, lambda: True) is None
    assert checkpoints(tmp_path / "run") == []


def test_resume_refuses_another_store(lift_store: Store, tmp_path: Path) -> None:
    run_of(lift_store, tmp_path / "run", tiny_config(steps=1))
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    content["store"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not the store"):
        reopen_run(tmp_path / "run", CPU, pytest.fail)


def test_checkpoint_holds_the_ema_weights(trained: Path) -> None:
    folder = (trained / "lift/tiny/checkpoints/best").resolve()
    policy, _ = load_policy(folder)
    state = torch.load(folder / TRAIN_STATE, weights_only=True)
    for shadow, parameter in zip(state["ema"], policy.parameters(), strict=True):
        assert torch.equal(shadow, parameter)


def test_metrics_are_recorded(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert all(math.isfinite(line["val_loss"]) for line in lines if "val_loss" in line)
    assert list(run.glob("events.out.tfevents.*"))


def test_minutes_and_epochs_become_steps(lift_store: Store) -> None:
    windows = len(trainer(lift_store).train_windows)
    assert planned_steps(tiny_config(steps=0, epochs=2), lift_store, CPU)[0] == round(2 * windows / 4)
    total, rate = planned_steps(tiny_config(steps=0, minutes=1), lift_store, CPU)
    assert 0.5 < total / (rate * 60) <= 1.0


def test_a_run_is_not_begun_twice(lift_store: Store, trained: Path) -> None:
    with pytest.raises(DdpError, match="--resume"):
        create_run(trained / "lift" / "tiny", tiny_config(), lift_store, CPU)


def test_a_store_of_another_task_is_refused(lift_store: Store) -> None:
    config = tiny_config()
    other = config.model_copy(update={"policy": config.policy.model_copy(update={"task": get_task("can")})})
    with pytest.raises(ConfigError, match="lift.*can"):
        Trainer(other, lift_store, CPU)


def test_a_task_without_an_object_trains_on_its_own_store_only(tmp_path: Path) -> None:
    task = task_from_json(DOOR | {"object": {}})
    attributes = {"render": "fast", "env_args": {}, "versions": {}, "action": {"convention": "delta", "dim": 7}}
    writer = StoreWriter(tmp_path / "s.zarr", task, [20], attributes | {"source": {"sha256": "x", "demos": [0]}}, 3)
    arrays = {"frontview_image": np.zeros((20, 84, 84, 3), np.uint8), "action": np.zeros((20, 7), np.float32)}
    writer.append(arrays | {k: np.ones((20, w), np.float32) for k, w in task.low_dim.items()})
    writer.finish()
    store = Store(tmp_path / "s.zarr")
    t = Trainer(train_config(task, "image", "laptop", None, TINY), store, CPU)
    t.total = 2
    assert math.isfinite(float(t.step()))
    t.load_state(t.state())
    with pytest.raises(ConfigError, match="another 'door': low_dim.robot0_eef_pos 3 instead of absent"):
        Trainer(train_config(task_from_json(task.to_json() | {"low_dim": {}}), "image", "laptop"), store, CPU)
