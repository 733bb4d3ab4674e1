"""The runtime of an exported policy with `prefix_steps`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import random_observation
from deploy.exporting import random_policy

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.prefix import prefix_inputs
from ddp_cli.deploy.export import ExportOptions, export_policy
from ddp_cli.deploy.exported_policy import ExportedAgent
from ddp_cli.deploy.runtime import Policy, PolicyError
from ddp_cli.errors import DdpError


def export(policy: DiffusionPolicy, out: Path, precision: str = "fp32") -> Policy:
    shapes = {key: (2, policy.config.n_obs_steps, width) for key, width in policy.config.low_dim.items()}
    generator = torch.Generator().manual_seed(0)
    obs = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    export_policy(policy, {}, ExportOptions(precision=precision), out, lambda: obs)
    return Policy.load(out)


def observe(policy: Policy) -> dict[str, np.ndarray]:
    history = [random_observation(policy, i) for i in range(policy.n_obs_steps)]
    return {key: np.stack([step[key] for step in history]) for key in policy.obs}


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_runtime_continues_a_prefix_as_the_checkpoint_does(
    tmp_path: Path, precision: str, prediction_type: str
) -> None:
    """In fp16 the graph is joined from those of its parts."""
    policy = random_policy(obs="state", prefix_steps=4, prediction_type=prediction_type)
    exported = export(policy, tmp_path / "policy", precision)
    assert exported.spec["prefix_steps"] == exported.prefix_steps == 4
    obs, prefix = observe(exported), np.random.default_rng(0).uniform(-0.5, 0.5, (3, 7))
    noise = exported.sample_noise(np.random.default_rng(0))
    tensors = {key: torch.from_numpy(x)[None] for key, x in obs.items()}
    inputs = prefix_inputs(policy.config, torch.tensor(prefix, dtype=torch.float32)[None], 1)
    features = policy.encode_obs(tensors)
    expected = policy.predict_from_features(features, torch.from_numpy(noise)[:, None], None, **inputs)["action"][0]
    actions = exported.predict(obs, noise, prefix)
    np.testing.assert_allclose(actions, expected, atol=1e-4 if precision == "fp32" else 3e-2)
    np.testing.assert_allclose(actions[:3], prefix, atol=1e-5)
    np.testing.assert_array_equal(
        exported.act(obs, noise, prefix=prefix), exported.limits.clamp(actions, None).astype(np.float32)
    )
    assert (exported.predict(obs, noise) != actions).any()
    agent = ExportedAgent(exported)
    agent.reset(0)
    history = [{key: x[i] for key, x in obs.items()} for i in range(exported.n_obs_steps)]
    np.testing.assert_allclose(agent.act(history, prefix)[:3], prefix, atol=1e-5)


def test_a_prefix_that_the_policy_does_not_take_is_refused(tmp_path: Path) -> None:
    exported = export(random_policy(obs="state", prefix_steps=2), tmp_path / "with")
    obs = observe(exported)
    for prefix in (np.zeros((3, 7)), np.zeros((2, 6)), np.zeros(7)):
        with pytest.raises(PolicyError, match="expected .P, 7. with P from 0 to 2"):
            exported.predict(obs, prefix=prefix)
    with pytest.raises(PolicyError, match="the prefix is not finite"):
        exported.act(obs, prefix=np.full((1, 7), np.nan))
    without = export(random_policy(obs="state"), tmp_path / "without")
    with pytest.raises(PolicyError, match="the policy takes no prefix"):
        without.predict(obs, prefix=np.zeros((1, 7)))
    with pytest.raises(DdpError, match="the policy takes no prefix"):
        ExportedAgent(without).act([{key: x[0] for key, x in obs.items()}] * 2, np.zeros((1, 7)))
    inputs = {x.name for x in onnx.load(tmp_path / "without/policy.onnx").graph.input}
    assert inputs == {"noise", *without.obs}
