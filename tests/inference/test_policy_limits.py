"""The limits of policies whose checkpoints do not record the range of their training data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_config

from ddp_cli.action_limits import ActionLimits
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.errors import CheckpointError
from ddp_cli.inference.policy_limits import action_limits
from ddp_cli.robots import delta_parts


def make_policy(actions: str) -> DiffusionPolicy:
    return DiffusionPolicy(tiny_config(obs="state", actions=actions).policy)


def with_normalizer(scale: list[float], offset: list[float]) -> DiffusionPolicy:
    """A policy with this normalizer of its positions."""
    policy = make_policy("absolute")
    policy.normalizer.get_buffer("action_scale")[:3] = torch.tensor(scale)
    policy.normalizer.get_buffer("action_offset")[:3] = torch.tensor(offset)
    return policy


def test_box_is_the_range_of_the_training_positions_plus_a_margin() -> None:
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-2, 2, (50, 10)).astype(np.float32))
    actions[:, 1] = 0.7  # constant
    policy = make_policy("absolute")
    policy.normalizer.fit({"action": actions})
    low, high = actions[:, :3].numpy().min(0), actions[:, :3].numpy().max(0)
    recorded = {"action_range": {"low": low.tolist(), "high": high.tolist()}}  # by earlier versions: positions only
    all_values = {"action_range": {"low": actions.amin(0).tolist(), "high": actions.amax(0).tolist()}}
    for limits in (action_limits(policy, meta) for meta in ({}, recorded, all_values)):
        np.testing.assert_allclose(limits.low, [*(low - 0.05), *[-np.inf] * 6, -1.0], atol=1e-5)
        np.testing.assert_allclose(limits.high, [*(high + 0.05), *[np.inf] * 6, 1.0], atol=1e-5)
    assert action_limits(policy, recorded) == action_limits(policy, all_values)
    for meta in ({}, {"action_range": {"low": [0.0] * 3, "high": [1.0] * 3}}):
        assert action_limits(make_policy("delta"), meta) == ActionLimits.from_parts(delta_parts())


def test_scale_1_is_a_constant_only_with_an_offset() -> None:
    """Identity normalizers, as in published checkpoints, do not fix the robot at the origin."""
    identity = action_limits(with_normalizer([1.0] * 3, [0.0] * 3), {})
    assert (identity.low[:3], identity.high[:3]) == ((-1.05,) * 3, (1.05,) * 3)
    mixed = action_limits(with_normalizer([1.0, 1.0, -4.0], [0.0, -0.7, 2.0]), {})
    np.testing.assert_allclose([mixed.low[:3], mixed.high[:3]], [[-1.05, 0.65, 0.2], [1.05, 0.75, 0.8]], atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high"),
    [([0.0, 0.0, 1.0], [1.0, 1.0, 0.0]), ([0.0, np.nan, 0.0], [1.0] * 3), ([0.0], [1.0]), ([0.0] * 4, [1.0] * 4)],
)
def test_a_range_that_is_none_is_refused(low: list[float], high: list[float]) -> None:
    with pytest.raises(CheckpointError, match="action_range in config.json is not a range of actions"):
        action_limits(make_policy("absolute"), {"action_range": {"low": low, "high": high}})


def test_a_scale_of_0_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the action normalizer is not a range of actions.*are not a box"):
        action_limits(with_normalizer([0.0, 1.0, 1.0], [0.0] * 3), {})
