from __future__ import annotations

import numpy as np
import pytest
import torch
from core.test_policy import make_policy, random_obs
from inference.test_engines import UNFOLDABLE, make_trained_policy

from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.inference.agent import PolicyAgent
from ddp_cli.inference.device import choose_device
from ddp_cli.inference.engine import choose_engine
from ddp_cli.inference.folded_denoiser import supports_folding


def test_actions_depend_on_seed_and_history_alone() -> None:
    agent = PolicyAgent(make_policy())
    obs = random_obs(agent.policy, 1)
    history = [
        {k: (v[0, i].permute(1, 2, 0) if v.ndim == 5 else v[0, i]).numpy() for k, v in obs.items()} for i in (0, 1)
    ]
    agent.reset(5)
    first = agent.act(history)
    second = agent.act(history)
    agent.reset(5)
    np.testing.assert_array_equal(agent.act(history), first)
    assert first.shape == (8, 7)
    assert not np.array_equal(first, second)
    generator = torch.Generator().manual_seed(5)
    np.testing.assert_allclose(agent.policy.predict_action(obs, generator)["action"][0], first, atol=1e-5)


@pytest.mark.parametrize("settings", UNFOLDABLE)
def test_policies_that_cannot_be_folded_run_in_torch(settings: dict) -> None:
    policy = make_trained_policy(**settings)
    assert not supports_folding(policy.config)
    assert choose_engine(policy.config, "cpu", "auto") == "torch"
    with pytest.raises(ConfigError, match="onnx cannot run this policy.*--engine torch"):
        PolicyAgent(policy, "onnx")
    with pytest.raises(ConfigError, match="compile cannot run this policy"):
        PolicyAgent(policy, "compile")


def test_auto_selects_the_engine_by_device() -> None:
    config = make_trained_policy().config
    assert choose_engine(config, "cpu", "auto") == "onnx"
    assert choose_engine(config, "cuda", "auto") == "torch"
    assert choose_engine(config, "cuda", "compile") == "compile"
    with pytest.raises(ConfigError, match="onnx cannot run this policy: it is on cuda"):
        choose_engine(config, "cuda", "onnx")
    with pytest.raises(UnknownNameError, match="'onx', did you mean 'onnx'.*auto, torch, compile, onnx"):
        choose_engine(config, "cpu", "onx")
    assert PolicyAgent(make_trained_policy()).engine == "onnx"


def test_unavailable_devices_are_reported() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="'gpu' is not available.*auto, cpu"):
        choose_device("gpu")
