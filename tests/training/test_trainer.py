from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config

from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.optimizer import learning_rate
from ddp_cli.training.trainer import Trainer

STORED = np.load(Path(__file__).parents[1] / "data" / "windows_ema.npz")
CPU = torch.device("cpu")


def trainer(store: Store, **changes: object) -> Trainer:
    config = tiny_config(**changes)
    return Trainer(config, load_training_data(config, store, CPU, lambda _: None), CPU, total=8)


def weights(t: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in t.policy.state_dict().items()}


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
    losses = [float(t.step()["noise"]) for _ in range(150)]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])


def test_auxiliary_losses_reach_the_encoder_but_not_the_policy(lift_store: Store) -> None:
    plain = trainer(lift_store, object_loss=0.0, action_loss=0.0)
    helped = trainer(lift_store, object_loss=1.0, action_loss=1.0)
    assert plain.policy.state_dict().keys() == helped.policy.state_dict().keys()
    for t in (plain, helped):
        t.step()
    key = next(n for n, _ in plain.policy.named_parameters() if n.startswith("encoders"))
    assert not torch.equal(plain.policy.state_dict()[key], helped.policy.state_dict()[key])
    assert float(plain.step()["noise"]) != float(helped.step()["noise"])


def test_every_weight_learns(lift_store: Store) -> None:
    t = trainer(lift_store, obs="image", fusion=16, action_loss=1.0)
    before = {name: p.detach().clone() for name, p in t.policy.named_parameters()}
    for _ in range(3):
        t.step()
    assert [name for name, p in t.policy.named_parameters() if torch.equal(p, before[name])] == []


TRAINED = [
    {"obs_as_cond": False},
    {"pred_action_steps_only": True},
    {"obs": "state"},
    {"obs_as_cond": False, "fusion": 8},
]


@pytest.mark.parametrize("settings", TRAINED)
def test_every_branch_trains(lift_store: Store, settings: dict) -> None:
    t = trainer(lift_store, action_loss=1.0, **settings)
    assert math.isfinite(float(t.step()["total"]))


def test_a_horizon_longer_than_every_demo_is_refused(lift_store: Store) -> None:
    with pytest.raises(ConfigError, match="horizon 300.*longest has"):
        trainer(lift_store, horizon=300)


def test_accumulation_changes_nothing_but_memory(lift_store: Store) -> None:
    """A batch of 5 in 3 unequal parts gives the gradient of the whole batch."""
    settings = {"batch_size": 5, "precision": "fp32", "lr": 1e-3}
    whole, parts = trainer(lift_store, **settings), trainer(lift_store, **settings, accumulate=3)
    for _ in range(3):
        a, b = whole.step(), parts.step()
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


def test_a_step_that_is_not_finite_changes_no_weight(lift_store: Store) -> None:
    t = trainer(lift_store)
    for _ in range(3):
        t.step()
    before, moments = weights(t), [v["exp_avg"].clone() for v in t.optimizer.state.values()]
    t.policy.draw, draw = (lambda *a: _poisoned(draw(*a))), t.policy.draw
    assert math.isnan(float(t.step()["noise"]))
    after = weights(t)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(torch.equal(a, v["exp_avg"]) for a, v in zip(moments, t.optimizer.state.values(), strict=True))
    assert all(torch.isfinite(p).all() for p in t.ema.shadow_params)
    assert (t.safe_step.skipped, t.safe_step.in_a_row) == (1, 1)
    t.policy.draw = draw
    assert math.isfinite(float(t.step()["noise"]))
    assert (t.safe_step.skipped, t.safe_step.in_a_row, t.step_number) == (1, 0, 5)
    assert any(not torch.equal(before[k], v) for k, v in weights(t).items())


def _poisoned(draws):
    draws.noise[0, 0, 0, 0] = math.nan
    return draws


def test_the_gradient_is_clipped_to_its_norm(lift_store: Store) -> None:
    plain, clipped = trainer(lift_store), trainer(lift_store, clip_grad_norm=1e-3)
    norm = float(plain.step()["grad_norm"])
    assert float(clipped.step()["grad_norm"]) == pytest.approx(norm)  # reported before clipping
    left = math.sqrt(sum(float((p.grad**2).sum()) for p in clipped.objective.parameters() if p.grad is not None))
    assert left == pytest.approx(1e-3, rel=1e-3) != norm


def test_a_compiled_policy_has_the_same_weights_by_name(lift_store: Store) -> None:
    plain, compiled = trainer(lift_store, obs="state"), trainer(lift_store, obs="state", compile=True)
    assert plain.policy.state_dict().keys() == compiled.policy.state_dict().keys()
