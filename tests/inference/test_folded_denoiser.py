from __future__ import annotations

import pytest
import torch

from ddp_cli.config import PolicyConfig
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.errors import ConfigError
from ddp_cli.inference.agent import PolicyAgent, choose_engine, predictor
from ddp_cli.inference.folded_denoiser import supports_folding

SMALL = {"task": "square", "obs": "state", "n_layer": 3, "n_emb": 32, "n_head": 4, "num_inference_steps": 12}
UNFOLDED = [{"n_cond_layers": 1}, {"obs_as_cond": False}, {"obs_as_cond": False, "time_as_cond": False}]


def policy(**settings: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    p = DiffusionPolicy(PolicyConfig(**SMALL | settings)).eval()
    for parameter in p.parameters():  # as after training: no bias is zero, no norm the identity
        parameter.data += torch.randn_like(parameter) * 0.1
    return p


def observations(p: DiffusionPolicy, b: int) -> dict[str, torch.Tensor]:
    return {key: torch.randn(b, p.config.n_obs_steps, width) for key, width in p.config.low_dim.items()}


@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"causal_attn": False},
        {"pred_action_steps_only": True},
        {"n_obs_steps": 4, "horizon": 16, "n_head": 2, "sampler": "ddim"},
        {"n_obs_steps": 1, "prediction_type": "sample", "sampler": "dpm"},
        {"p_drop_attn": 0.3, "p_drop_emb": 0.1},
        {"fusion": 16, "prediction_type": "sample"},
    ],
)
def test_the_folded_chain_equals_the_network(engine: str, b: int, settings: dict) -> None:
    p = policy(**settings)
    fast = predictor(p, engine)
    for seed in (0, 1):  # the memory of the second chunk is another one
        obs = observations(p, b)
        plain = p.predict_action(obs, torch.Generator().manual_seed(seed))["action"]
        torch.testing.assert_close(fast(obs, torch.Generator().manual_seed(seed)), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"encoder": "small", "fusion": 16}, {"encoder": "small", "crop_shape": (83, 84)}, {"encoder": "resnet18"}],
)
def test_pictures_are_encoded_by_the_graph_as_by_torch(settings: dict) -> None:
    p = policy(obs="image", **settings)
    for name, buffer in p.normalizer.named_buffers():
        buffer.uniform_(0.5, 1.5) if name.endswith("scale") else buffer.uniform_(-0.3, 0.3)
    obs = observations(p, 2) | {
        key: torch.randint(0, 256, (2, p.config.n_obs_steps, 3, 84, 84), dtype=torch.uint8)
        for key in p.config.image_keys
    }
    plain, whole = (predictor(p, engine)(obs, torch.Generator().manual_seed(0)) for engine in ("torch", "onnx"))
    torch.testing.assert_close(whole, plain, atol=1e-5, rtol=0)


def test_the_compiled_chain_equals_the_network() -> None:
    p = policy()
    obs = observations(p, 1)
    plain = p.predict_action(obs, torch.Generator().manual_seed(0))["action"]
    compiled = predictor(p, "compile")(obs, torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", UNFOLDED)
def test_other_denoisers_run_as_they_are(settings: dict) -> None:
    p = policy(**settings)
    assert not supports_folding(p.config)
    assert choose_engine(p.config, "cpu", "auto") == "torch"
    with pytest.raises(ConfigError, match="cannot run this policy.*--engine torch"):
        PolicyAgent(p, "onnx")
    with pytest.raises(ConfigError, match="compile cannot run this policy"):
        PolicyAgent(p, "compile")


def test_the_engine_is_chosen_by_device_and_named() -> None:
    config = policy().config
    assert choose_engine(config, "cpu", "auto") == "onnx"
    assert choose_engine(config, "cuda", "auto") == "torch"
    with pytest.raises(ConfigError, match="on cuda"):
        choose_engine(config, "cuda", "onnx")
    with pytest.raises(ConfigError, match="'onx', did you mean 'onnx'"):
        choose_engine(config, "cpu", "onx")
    assert PolicyAgent(policy()).engine == "onnx"
