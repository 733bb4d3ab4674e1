"""`DiffusionPolicy.compute_loss`; equality with the published loss is in test_published.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core.test_policy import make_policy, random_obs

from ddp_cli.core.noise_schedule import alphas_cumprod
from ddp_cli.core.policy import DiffusionPolicy

SETTINGS = [{}, {"obs": "state", "pred_action_steps_only": True}, {"obs_as_cond": False}]


def random_batch(policy: DiffusionPolicy, batch_size: int = 2) -> dict[str, Any]:
    obs = random_obs(policy, batch_size, policy.config.n_encoded_steps)
    return {"obs": obs, "action": torch.rand(batch_size, policy.config.horizon, 7)}


@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_of_a_batch_alone_is_a_finite_scalar_with_gradients(settings: dict) -> None:
    policy = make_policy(**settings).train()
    loss = policy.compute_loss(random_batch(policy))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in policy.denoiser.parameters())
    assert any((p.grad != 0).any() for p in policy.denoiser.parameters())


@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_is_determined_by_noise_and_timesteps(settings: dict) -> None:
    policy = make_policy(**settings)
    batch = random_batch(policy)
    noise, timesteps = torch.randn(2, *policy.trajectory_shape), torch.tensor([3, 90])
    loss = policy.compute_loss(batch, noise=noise, timesteps=timesteps)
    assert torch.equal(policy.compute_loss(batch, noise=noise, timesteps=timesteps), loss)
    assert not torch.equal(policy.compute_loss(batch, noise=noise + 1, timesteps=timesteps), loss)
    assert not torch.equal(policy.compute_loss(batch, noise=noise, timesteps=timesteps + 5), loss)


def test_missing_noise_and_timesteps_are_sampled_by_the_default_generator() -> None:
    policy = make_policy(obs="state")
    batch = random_batch(policy, 3)
    torch.manual_seed(7)
    noise = torch.randn(3, 10, 7)
    timesteps = torch.randint(0, policy.config.num_train_timesteps, (3,))
    expected = policy.compute_loss(batch, noise=noise, timesteps=timesteps)
    torch.manual_seed(7)
    assert torch.equal(policy.compute_loss(batch), expected)
    assert not torch.equal(policy.compute_loss(batch), expected)
    torch.manual_seed(7)
    assert torch.equal(policy.compute_loss(batch, timesteps=timesteps), expected)


def test_images_are_cropped_centrally_without_crop_offsets() -> None:
    policy = make_policy().train()
    for parameter in policy.denoiser.parameters():
        parameter.data *= 5  # at initialization the loss hardly depends on the images
    batch = random_batch(policy)
    noise = {"noise": torch.randn(2, 10, 7), "timesteps": torch.tensor([3, 90])}
    center = {key: torch.full((2, 2, 2), 4) for key in policy.config.image_keys}  # 76x76 of 84x84
    corner = {key: torch.zeros(2, 2, 2, dtype=torch.int64) for key in policy.config.image_keys}
    loss = policy.compute_loss(batch, **noise)
    torch.testing.assert_close(policy.compute_loss(batch, **noise, crop_offsets=center), loss)
    assert not torch.allclose(policy.compute_loss(batch, **noise, crop_offsets=corner), loss, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_loss_is_the_mean_squared_error_of_the_prediction(prediction_type: str) -> None:
    policy = make_policy(prediction_type=prediction_type)
    batch = random_batch(policy)
    action = batch["action"]
    noise, timesteps = torch.randn(2, 10, 7), torch.tensor([3, 90])
    loss = policy.compute_loss(batch, noise=noise, timesteps=timesteps)
    a = alphas_cumprod(policy.config)[timesteps][:, None, None]
    noisy = a.sqrt() * action + (1 - a).sqrt() * noise
    prediction = policy.denoiser(noisy, timesteps, policy.encode_obs(batch["obs"]))
    target = noise if prediction_type == "epsilon" else action
    torch.testing.assert_close(loss, ((prediction - target) ** 2).mean())


def test_pred_action_steps_only_ignores_the_actions_that_are_not_executed() -> None:
    policy = make_policy(obs="state", pred_action_steps_only=True)
    batch = random_batch(policy)
    noise = {"noise": torch.randn(2, 8, 7), "timesteps": torch.tensor([3, 90])}
    loss = policy.compute_loss(batch, **noise)
    for step in range(10):
        action = batch["action"].clone()
        action[:, step] += 0.5
        changed = policy.compute_loss(batch | {"action": action}, **noise)
        assert torch.equal(changed, loss) == (step in {0, 9}), step


def test_inpainted_features_are_given_to_the_denoiser_and_excluded_from_the_loss() -> None:
    policy = make_policy(obs="state", obs_as_cond=False)
    batch = random_batch(policy)
    features = policy.encode_obs(batch["obs"], n_steps=10)
    inputs: list[torch.Tensor] = []

    def denoiser(x: torch.Tensor, _timesteps: torch.Tensor, _cond: None, _given: None) -> torch.Tensor:
        inputs.append(x)
        return torch.zeros_like(x)

    policy.denoiser.forward = denoiser
    noise, timesteps = torch.randn(2, 10, 7 + 19), torch.tensor([60, 90])
    loss = policy.compute_loss(batch, noise=noise, timesteps=timesteps)
    assert torch.equal(inputs[0][:, :2, 7:], features[:, :2])
    assert (inputs[0][:, 2:, 7:] != features[:, 2:]).all()
    masked = noise.clone()
    masked[:, :2, 7:] = 0.0
    torch.testing.assert_close(loss, (masked**2).mean())


@pytest.mark.parametrize("settings", SETTINGS)
def test_several_noise_samples_share_one_encoding(settings: dict) -> None:
    policy = make_policy(**settings)
    batch = random_batch(policy)
    noise, timesteps = torch.randn(2, 3, *policy.trajectory_shape), torch.arange(6).view(2, 3) * 10
    features = policy.encode_obs(batch["obs"], n_steps=policy.config.n_encoded_steps)
    loss = policy.loss_from_features(features, batch["action"], noise, timesteps)
    losses = [policy.compute_loss(batch, noise=noise[:, i], timesteps=timesteps[:, i]) for i in range(3)]
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_the_encoders_have_no_gradient_when_inpainting() -> None:
    policy = make_policy(obs_as_cond=False)
    policy.compute_loss(random_batch(policy)).backward()
    assert all(p.grad is None for p in policy.encoders.parameters())
