"""Equality with the published implementation, on stored outputs of its code (torch CPU, float32)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from core.published_recipe import inputs, low_dim_weights, state_dict, weight

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.published import import_published
from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.policy_config import PolicyConfig

DATA = Path(__file__).parents[1] / "data"
CASES = ["default", "non_causal", "n_cond_layers_2", "predict_sample", "ddim10", "action_steps_only", "inpainting"]


def config_of(stored: np.lib.npyio.NpzFile) -> PolicyConfig:
    content = json.loads(str(stored["config"]))
    settings = dict(content.get("policy", {}))
    if "prediction_type" in content:
        settings["prediction_type"] = content["prediction_type"]
    if "ddim" in content:
        settings |= {"sampler": "ddim", "num_inference_steps": content["ddim"]}
    return PolicyConfig(task="square", **settings)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_published_implementation(case: str) -> None:
    stored = np.load(DATA / f"{case}.npz")
    config = config_of(stored)
    policy = import_published(state_dict(config), config)
    obs, action = inputs(config.n_encoded_steps)

    def assert_close(actual: torch.Tensor, name: str, tolerance: float) -> None:
        np.testing.assert_allclose(actual.detach().numpy(), stored[name], atol=tolerance, rtol=0, err_msg=name)

    features = policy.encode_obs(obs)
    assert_close(features, "obs_features", 1e-5)
    cond = torch.from_numpy(stored["obs_features"]) if config.obs_as_cond else None
    out = policy.denoiser(torch.from_numpy(stored["denoise_in"]), torch.from_numpy(stored["denoise_t"]), cond)
    assert_close(out, "denoise_out", 1e-5)
    noise, timesteps = torch.from_numpy(stored["loss_noise"]), torch.from_numpy(stored["loss_timesteps"])
    loss = policy.compute_loss({"obs": obs, "action": action}, noise=noise, timesteps=timesteps)
    assert_close(loss, "loss", 1e-5)
    result = policy.predict_action(obs, torch.Generator().manual_seed(11))
    assert_close(result["action_pred"], "action_pred", 1e-4)
    assert_close(result["action"], "action", 1e-4)


def test_weight_names_are_the_published_ones() -> None:
    """Names and shapes of the published default configuration, recorded from its code."""
    recorded = json.loads((DATA / "published_names.json").read_text())
    derived = state_dict(PolicyConfig(task="square"))
    for name, w in derived.items():
        assert recorded[name] == list(w.shape), name
    full = {name: weight(name, tuple(shape)) for name, shape in recorded.items() if shape != [0]}
    for name in full:
        if name.endswith("temperature"):
            full[name] = torch.ones(1)
    with_buffers = import_published(full, PolicyConfig(task="square"))
    without_buffers = import_published(derived, PolicyConfig(task="square"))
    for name, w in without_buffers.state_dict().items():
        assert torch.equal(w, with_buffers.state_dict()[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {"obs_as_cond": False, "time_as_cond": False},
        {"pred_action_steps_only": True, "causal_attn": True},
        {"obs_as_cond": False, "horizon": 12, "n_emb": 64, "n_cond_layers": 1},
        {"n_cond_layers": 1, "horizon": 16, "n_obs_steps": 3, "n_action_steps": 4, "n_layer": 2},
        {"crop_shape": (68, 80), "n_head": 8, "num_inference_steps": 7, "sampler": "ddim"},
    ],
)
def test_policies_with_other_settings_are_imported_and_run(settings: dict) -> None:
    config = PolicyConfig(task="square", **settings)
    policy = import_published(state_dict(config), config)
    obs, action = inputs(config.n_encoded_steps, config.horizon)
    if config.num_inference_steps == 100:
        policy.set_sampler(None, 3)
    result = policy.predict_action(obs, torch.Generator().manual_seed(0))
    assert result["action"].shape == (2, config.n_action_steps, 7)
    assert result["action_pred"].shape == (2, config.trajectory_steps, 7)
    assert torch.isfinite(policy.compute_loss({"obs": obs, "action": action}))


def test_action_steps_only_with_causal_attention_attends_to_all_observations() -> None:
    """Token i is step n_obs_steps - 1 + i of the window: it attends to observations up to that step."""
    config = PolicyConfig(
        task="square", obs="state", pred_action_steps_only=True, horizon=12, n_obs_steps=4, n_action_steps=6, n_layer=1
    )
    policy = import_published_state(config)
    cond = torch.randn(1, 4, 23, requires_grad=True)
    out = policy.denoiser(torch.randn(1, 6, 7), torch.tensor([5]), cond)
    for i in range(6):
        (grad,) = torch.autograd.grad(out[0, i].sum(), cond, retain_graph=True)
        assert (grad[0].abs().sum(-1) > 0).all()  # tokens begin at the last observation


def import_published_state(config: PolicyConfig) -> DiffusionPolicy:
    weights = low_dim_weights(config)
    policy = import_published(weights, config)
    expected = policy.normalizer.get_buffer("object_scale")
    assert torch.equal(expected, weights["normalizer.params_dict.obs.scale"][:14])
    return policy


def test_inpainted_features_are_set_before_every_step() -> None:
    config = PolicyConfig(task="square", obs_as_cond=False, n_layer=1, num_inference_steps=3)
    policy = import_published(state_dict(config), config)
    obs, _ = inputs(2)
    inputs_of_denoiser: list[torch.Tensor] = []
    forward = policy.denoiser.forward
    policy.denoiser.forward = lambda x, k, c, given: (inputs_of_denoiser.append(x.clone()), forward(x, k, c, given))[1]
    policy.predict_action(obs, torch.Generator().manual_seed(0))
    features = policy.encode_obs(obs)
    assert len(inputs_of_denoiser) == 3
    for x in inputs_of_denoiser:
        torch.testing.assert_close(x[:, :2, 7:], features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_as_cond": False}, "obs_as_cond needs time_as_cond"),
        ({"obs_as_cond": False, "pred_action_steps_only": True}, "pred_action_steps_only needs obs_as_cond"),
        ({"obs_as_cond": False, "time_as_cond": False, "n_cond_layers": 2}, "n_cond_layers 2 needs time_as_cond"),
    ],
)
def test_invalid_combinations_of_settings_are_rejected(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(task="square", **settings)


def test_weights_of_another_configuration_are_rejected() -> None:
    config = PolicyConfig(task="square")
    weights = state_dict(config)
    with pytest.raises(CheckpointError, match="not part of the configuration"):
        import_published({**weights, "model.extra.weight": torch.zeros(1)}, config)
    with pytest.raises(CheckpointError, match=r"no 'model\.head\.bias'"):
        import_published({k: v for k, v in weights.items() if k != "model.head.bias"}, config)
    with pytest.raises(CheckpointError, match="do not fit"):
        import_published({**weights, "model.head.bias": torch.zeros(8)}, config)
    with pytest.raises(CheckpointError, match="not part of the configuration"):
        import_published(weights, PolicyConfig(task="square", n_layer=7))
