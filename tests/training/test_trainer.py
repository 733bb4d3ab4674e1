from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config

from ddp_cli.core.training_noise import TrainingNoise
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.ema import EMA
from ddp_cli.training.optimizer import learning_rate
from ddp_cli.training.trainer import Trainer

PUBLISHED = np.load(Path(__file__).parents[1] / "data" / "windows_ema.npz")
CPU = torch.device("cpu")


def make_trainer(store: Store, **changes: object) -> Trainer:
    config = tiny_config(**changes)
    return Trainer(config, load_training_data(config, store, CPU, lambda _: None), CPU, total=8)


def copy_weights(t: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in t.policy.state_dict().items()}


def test_ema_decay_matches_the_published_code(lift_store: Store) -> None:
    t = make_trainer(lift_store)
    decays = []
    for _ in range(4):
        before = t.ema.shadow[0].clone()
        t.step()
        after, raw = t.ema.shadow[0], next(iter(t.policy.parameters()))
        decays.append(1.0 - float((after - before).norm() / (raw.detach() - before).norm()))
    assert decays == pytest.approx([0.0, 0.0, 0.4054, 0.5613], abs=1e-3)
    for steps, decay in zip(PUBLISHED["ema_steps"], PUBLISHED["ema_decay"], strict=True):
        t.ema.steps = int(steps) + 1  # the published code counts from 0
        assert t.ema.decay == pytest.approx(decay, abs=1e-9)


def test_ema_is_that_of_diffusers() -> None:
    from diffusers.training_utils import EMAModel

    parameters = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(4))]
    ema = EMA(parameters, inv_gamma=2.0, power=0.7, max_decay=0.8)
    expected = EMAModel(
        parameters, decay=0.8, use_ema_warmup=True, inv_gamma=2.0, power=0.7, update_after_step=1, foreach=True
    )
    for _ in range(20):
        for parameter in parameters:
            parameter.data += torch.randn(parameter.shape)
        ema.step()
        expected.step(parameters)
        assert ema.decay == expected.cur_decay_value
        torch.testing.assert_close(ema.shadow, expected.shadow_params)
    assert ema.decay == 0.8
    raw = [p.detach().clone() for p in parameters]
    with ema.applied():
        assert all(torch.equal(p, average) for p, average in zip(parameters, ema.shadow, strict=True))
    assert all(torch.equal(p, value) for p, value in zip(parameters, raw, strict=True))


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = tiny_config(lr=1.0, warmup_steps=1000)
    assert learning_rate(config, 0, 100_000) == pytest.approx(1e-3)
    assert learning_rate(config, 999, 100_000) == pytest.approx(1.0)
    assert learning_rate(config, 50_500, 100_000) == pytest.approx(0.5, abs=1e-6)
    assert learning_rate(config, 100_000, 100_000) == pytest.approx(0.0)
    assert learning_rate(config, 4, 100) == pytest.approx(1.0)  # warm-up is 5% of a short run


def test_training_lowers_the_loss(lift_store: Store) -> None:
    t = make_trainer(lift_store, batch_size=16, n_emb=32, lr=3e-3, obs="state")
    t.total = 150
    losses = [float(t.step()["noise"]) for _ in range(150)]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])


def test_auxiliary_losses_train_the_encoder_and_add_no_weights_to_the_policy(lift_store: Store) -> None:
    plain = make_trainer(lift_store, object_loss=0.0, action_loss=0.0)
    auxiliary = make_trainer(lift_store, object_loss=1.0, action_loss=1.0)
    assert plain.policy.state_dict().keys() == auxiliary.policy.state_dict().keys()
    for t in (plain, auxiliary):
        t.step()
    key = next(n for n, _ in plain.policy.named_parameters() if n.startswith("encoders"))
    assert not torch.equal(plain.policy.state_dict()[key], auxiliary.policy.state_dict()[key])
    assert float(plain.step()["noise"]) != float(auxiliary.step()["noise"])


def test_every_weight_is_trained(lift_store: Store) -> None:
    t = make_trainer(lift_store, obs="image", fusion=16, action_loss=1.0)
    before = {name: p.detach().clone() for name, p in t.policy.named_parameters()}
    for _ in range(3):
        t.step()
    assert [name for name, p in t.policy.named_parameters() if torch.equal(p, before[name])] == []


VARIANTS = [
    {"obs_as_cond": False},
    {"pred_action_steps_only": True},
    {"obs": "state"},
    {"obs_as_cond": False, "fusion": 8},
]


@pytest.mark.parametrize("settings", VARIANTS)
def test_every_variant_of_the_policy_trains(lift_store: Store, settings: dict) -> None:
    t = make_trainer(lift_store, action_loss=1.0, **settings)
    assert math.isfinite(float(t.step()["total"]))


def test_a_horizon_longer_than_every_demonstration_is_rejected(lift_store: Store) -> None:
    with pytest.raises(ConfigError, match="long enough for horizon 300. The longest to train on has"):
        make_trainer(lift_store, horizon=300)


def test_gradient_accumulation_does_not_change_the_gradient(lift_store: Store) -> None:
    """A batch of 5 in 3 micro-batches of unequal size."""
    settings = {"batch_size": 5, "precision": "fp32", "lr": 1e-3}
    full, accumulated = make_trainer(lift_store, **settings), make_trainer(lift_store, **settings, accumulate=3)
    for _ in range(3):
        a, b = full.step(), accumulated.step()
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


def test_a_non_finite_step_changes_no_weight(lift_store: Store) -> None:
    t = make_trainer(lift_store)
    for _ in range(3):
        t.step()
    before, moments = copy_weights(t), [v["exp_avg"].clone() for v in t.optimizer.state.values()]
    sample = t.policy.sample_training_noise
    t.policy.sample_training_noise = lambda *args: _with_nan(sample(*args))
    assert math.isnan(float(t.step()["noise"]))
    after = copy_weights(t)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(torch.equal(a, v["exp_avg"]) for a, v in zip(moments, t.optimizer.state.values(), strict=True))
    assert all(torch.isfinite(p).all() for p in t.ema.shadow)
    assert (t.safe_step.skipped, t.safe_step.consecutive_skips) == (1, 1)
    t.policy.sample_training_noise = sample
    assert math.isfinite(float(t.step()["noise"]))
    assert (t.safe_step.skipped, t.safe_step.consecutive_skips, t.step_number) == (1, 0, 5)
    assert any(not torch.equal(before[k], v) for k, v in copy_weights(t).items())


def _with_nan(noise: TrainingNoise) -> TrainingNoise:
    noise.noise[0, 0, 0, 0] = math.nan
    return noise


def test_the_gradient_norm_is_clipped(lift_store: Store) -> None:
    plain, clipped = make_trainer(lift_store), make_trainer(lift_store, clip_grad_norm=1e-3)
    norm = float(plain.step()["grad_norm"])
    assert float(clipped.step()["grad_norm"]) == pytest.approx(norm)  # reported before clipping
    clipped_norm = math.sqrt(
        sum(float((p.grad**2).sum()) for p in clipped.objective.parameters() if p.grad is not None)
    )
    assert clipped_norm == pytest.approx(1e-3, rel=1e-3) != norm


def test_a_compiled_policy_has_the_same_weight_names(lift_store: Store) -> None:
    plain, compiled = make_trainer(lift_store, obs="state"), make_trainer(lift_store, obs="state", compile=True)
    assert plain.policy.state_dict().keys() == compiled.policy.state_dict().keys()
