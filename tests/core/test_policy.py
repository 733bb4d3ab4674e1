from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DOOR, tiny_config
from torch import Tensor

from ddp_cli.core.checkpoint import load_policy, save_checkpoint
from ddp_cli.core.noise_schedule import alphas_cumprod
from ddp_cli.core.policy import FUSION_DIM, DiffusionPolicy
from ddp_cli.errors import ConfigError
from ddp_cli.inference.engine import make_predict_fn
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.schema import ActionPart, Camera, Schema
from ddp_cli.tasks import Task


def make_policy(**settings: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(tiny_config(**settings).policy).eval()


def random_obs(policy: DiffusionPolicy, batch_size: int = 2, n_steps: int | None = None) -> dict[str, Tensor]:
    shape = (batch_size, n_steps or policy.config.n_obs_steps)
    obs = {k: torch.randint(0, 256, (*shape, 3, 84, 84), dtype=torch.uint8) for k in policy.config.image_keys}
    return obs | {k: torch.randn(*shape, width) for k, width in policy.config.low_dim.items()}


@pytest.mark.parametrize(("obs_kind", "width"), [("image", 2 * 64 + 9), ("state", 10 + 9)])
def test_features_are_cameras_then_low_dim(obs_kind: str, width: int) -> None:
    policy = make_policy(obs=obs_kind)
    obs = random_obs(policy)
    features = policy.encode_obs(obs)
    assert features.shape == (2, 2, width)
    torch.testing.assert_close(features[..., -2:], obs["robot0_gripper_qpos"])


def test_fusion_appends_features_of_the_same_step() -> None:
    policy = make_policy(obs="state", fusion=16)
    obs = random_obs(policy)
    features = policy.encode_obs(obs)
    assert features.shape == (2, 2, 10 + 9 + FUSION_DIM)
    assert torch.equal(features[..., :19], make_policy(obs="state").encode_obs(obs))
    obs["object"][:, 1] += 0.1
    changed = (policy.encode_obs(obs) != features).any(-1)
    assert changed.tolist() == [[False, True]] * 2


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (10, 7)),
        ({"pred_action_steps_only": True}, (8, 7)),
        ({"obs_as_cond": False}, (10, 7 + 19)),
    ],
)
def test_trajectory_shape(settings: dict, shape: tuple[int, int]) -> None:
    policy = make_policy(obs="state", **settings)
    assert policy.trajectory_shape == shape
    noise = policy.sample_training_noise(3, torch.Generator(), noise_samples=2)
    assert noise.noise.shape == (3, 2, *shape)
    assert policy.predict_action(random_obs(policy))["action_pred"].shape == (2, shape[0], 7)


def test_inpainting_mask_covers_the_features_of_the_observations() -> None:
    mask = make_policy(obs="state", obs_as_cond=False).inpainting_mask()
    assert mask[:2, 7:].all()
    assert int(mask.sum()) == 2 * 19
    assert not make_policy(obs="state").inpainting_mask().any()


@pytest.mark.parametrize("settings", [{}, {"obs_as_cond": False}, {"n_obs_steps": 3, "n_action_steps": 4}])
def test_executed_actions_start_at_the_last_observation(settings: dict) -> None:
    policy = make_policy(obs="state", **settings)
    result = policy.predict_action(random_obs(policy), torch.Generator().manual_seed(1))
    start, n_action_steps = policy.config.n_obs_steps - 1, policy.config.n_action_steps
    assert result["action_pred"].shape == (2, 10, 7)
    assert torch.equal(result["action"], result["action_pred"][:, start : start + n_action_steps])


def test_with_pred_action_steps_only_all_predicted_actions_are_executed() -> None:
    policy = make_policy(obs="state", pred_action_steps_only=True)
    result = policy.predict_action(random_obs(policy), torch.Generator().manual_seed(1))
    assert torch.equal(result["action"], result["action_pred"])
    assert (policy.config.trajectory_start, policy.config.action_start) == (1, 0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_generator_determines_the_sample(sampler: str) -> None:
    policy = make_policy(sampler=sampler)
    obs = random_obs(policy)
    first, same, other = (policy.predict_action(obs, torch.Generator().manual_seed(s))["action"] for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_ddpm_with_all_steps_recovers_the_trajectory_of_an_oracle() -> None:
    policy = make_policy(sampler="ddpm", num_inference_steps=100)
    target = torch.rand(2, 10, 7) * 2 - 1
    alphas = alphas_cumprod(policy.config)

    def oracle(x: Tensor, k: Tensor, _cond: Tensor, _given: None) -> Tensor:
        a = alphas[k]
        return (x - a.sqrt() * target) / (1 - a).sqrt()

    policy.denoiser.forward = oracle
    result = policy.predict_action(random_obs(policy), torch.Generator().manual_seed(0))["action_pred"]
    torch.testing.assert_close(result, target, atol=1e-3, rtol=0)


def test_policy_with_a_single_camera_and_no_low_dim() -> None:
    config = PolicyConfig(task=DOOR | {"low_dim": {}}, encoder="small", n_layer=1, n_emb=16, num_inference_steps=1)
    policy = DiffusionPolicy(config).eval()
    obs = {"frontview_image": torch.zeros(1, 2, 3, 84, 84, dtype=torch.uint8)}
    assert policy.predict_action(obs)["action"].shape == (1, 8, 7)


def test_set_sampler_is_validated() -> None:
    policy = make_policy()
    policy.set_sampler("ddpm", 7)
    assert (policy.config.sampler, policy.config.num_inference_steps) == ("ddpm", 7)
    policy.set_sampler("ddim", None)
    assert (policy.config.sampler, policy.config.num_inference_steps) == ("ddim", 7)
    policy.set_sampler("ddpm", None)
    assert (policy.config.sampler, policy.config.num_inference_steps) == ("ddpm", 100)
    with pytest.raises(ValueError, match="101"):
        policy.set_sampler(None, 101)


def test_paper_configuration_has_the_published_size() -> None:
    policy = DiffusionPolicy(PolicyConfig(task="square"))
    assert sum(x.numel() for x in policy.denoiser.parameters()) == pytest.approx(9.0e6, rel=0.05)


def test_cameras_can_share_an_encoder(tmp_path: Path) -> None:
    camera, action = Camera(height=20, width=20), (ActionPart(name="action", width=2),)
    task = Task("two", Schema(rate=10, cameras={"left": camera, "right": camera}, action=action))
    settings: dict[str, Any] = {"task": task, "actions": "recorded", "encoder": "small", "crop_ratio": 0.9}
    settings |= {"n_layer": 1, "n_emb": 16, "n_head": 2, "num_inference_steps": 2}
    shared = DiffusionPolicy(PolicyConfig(**settings, share_encoder=True))
    separate = DiffusionPolicy(PolicyConfig(**settings))
    n_shared, n_separate = (sum(p.numel() for p in policy.encoders.parameters()) for policy in (shared, separate))
    assert n_separate == 2 * n_shared
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randint(0, 256, (2, 3, 2, 3, 20, 20), generator=rng, dtype=torch.uint8)
    features = shared.encode_obs({"left": left, "right": right})
    assert features.shape == separate.encode_obs({"left": left, "right": right}).shape == (3, 2, 128)
    swapped = shared.encode_obs({"left": right, "right": left})
    torch.testing.assert_close(swapped, features.roll(64, dims=-1))

    save_checkpoint(tmp_path / "c", shared.config, shared.state_dict(), {}, None)
    loaded = load_policy(tmp_path / "c")[0]
    obs = {"left": left[:1], "right": right[:1]}
    expected = make_predict_fn(loaded, "torch")(obs, torch.Generator().manual_seed(1))
    onnx = make_predict_fn(loaded, "onnx")(obs, torch.Generator().manual_seed(1))
    torch.testing.assert_close(onnx, expected, atol=1e-4, rtol=0)
    wide = task.schema.model_copy(update={"cameras": {"left": camera, "right": Camera(height=20, width=30)}})
    with pytest.raises(ConfigError, match="share_encoder needs crops of one shape: left 18x18x3, right 18x27x3"):
        PolicyConfig(**settings | {"task": Task("two", wide)}, share_encoder=True)
