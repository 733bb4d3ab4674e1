"""The diffusion policy: predicts a chunk of actions from observations.

Diffusion Policy (Chi et al. 2023), section III: samples from p(A | O) by denoising, conditioned on the features of the
last To observations. Of the predicted actions Ta are executed before the next prediction.

Shapes: B batch, To n_obs_steps, T horizon (of a trajectory: `trajectory_steps`), Ta n_action_steps, Da action,
Do features, D trajectory width (Da, or Da + Do when inpainting), R noise samples per observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddp_cli.core.denoiser import Denoiser
from ddp_cli.core.diffusion import DenoiseFn, make_denoising_steps, sample, sample_noise
from ddp_cli.core.noise_schedule import add_noise, alphas_cumprod
from ddp_cli.core.normalizer import Normalizer, column_normalizations
from ddp_cli.core.prefix import given_steps, no_prefix_error, place_prefix, sample_prefix_lengths
from ddp_cli.core.training_noise import TrainingNoise, sample_timesteps, sample_training_noise
from ddp_cli.core.vision import IMAGE_FEATURE_DIM, ImageEncoder, crop
from ddp_cli.errors import ConfigError
from ddp_cli.policy_config import PolicyConfig

DenoiserFactory = Callable[[Tensor, Tensor | None], DenoiseFn]
"""Conditions a denoiser on features (B, To, Do) and on the steps (B, T) that are given, None: none."""

FUSION_DIM = 128
"""Number of features that `fusion` appends."""


class DiffusionPolicy(nn.Module):
    """Image encoders, denoiser, normalizer and noise schedule, built from a PolicyConfig."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        encoded_cameras = list(config.cameras.items())[: 1 if config.share_encoder else None]
        if taken := [key for key, _ in encoded_cameras if hasattr(nn.ModuleDict(), key)]:
            raise ConfigError(
                f"a camera cannot be called '{taken[0]}': PyTorch uses this name itself.",
                f"Convert the recording with another one: --keys NAME={taken[0]}.",
            )
        encoders = {
            key: ImageEncoder(config.encoder, config.crop(key), camera.channels, config.encoder_width)
            for key, camera in encoded_cameras
        }
        self.encoders = nn.ModuleDict(encoders)
        """By camera; with `share_encoder` only that of the first one."""
        self.normalizer = Normalizer(column_normalizations(config))
        obs_dim = IMAGE_FEATURE_DIM * len(config.cameras) + sum(config.low_dim.values())
        self.fusion = _make_fusion(obs_dim, config.fusion) if config.fusion else None
        self.feature_dim = obs_dim + (FUSION_DIM if config.fusion else 0)
        self.denoiser = Denoiser(config, self.feature_dim)
        self.steps = make_denoising_steps(config)
        self._alphas_cumprod = alphas_cumprod(config)  # on the device of the last training step

    @property
    def device(self) -> torch.device:
        return self.denoiser.pos_emb.device

    def encoder(self, key: str) -> nn.Module:
        """The encoder of a camera."""
        return self.encoders[next(iter(self.encoders)) if self.config.share_encoder else key]

    @property
    def trajectory_shape(self) -> tuple[int, int]:
        """(T, D) of the denoised trajectory of one sample."""
        return self.config.trajectory_steps, self.denoiser.trajectory_width

    @property
    def n_noise_tensors(self) -> int:
        """Noise tensors (B, T, D) of a prediction: the initial trajectory, and one for each step that has noise."""
        return 1 + sum(step.noise > 0 for step in self.steps)

    def sample_noise(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """The noise of a prediction (n_noise_tensors, B, T, D), on the CPU."""
        return sample_noise(self.n_noise_tensors, (batch_size, *self.trajectory_shape), generator)

    def inpainting_mask(self) -> Tensor:
        """(T, D) bool: entries of the trajectory [action, features] that are given, the features of the first To steps.

        All False without inpainting (`obs_as_cond`).
        """
        mask = torch.zeros(self.trajectory_shape, dtype=torch.bool, device=self.device)
        mask[: self.config.n_obs_steps, self.config.action_dim :] = True
        return mask

    def set_sampler(self, sampler: str | None, num_inference_steps: int | None) -> None:
        """Changes the sampler as `PolicyConfig.with_sampler` does."""
        self.config = self.config.with_sampler(sampler, num_inference_steps)
        self.steps = make_denoising_steps(self.config)

    def set_inpainting_steps(self, steps: int) -> None:
        """Take prefixes of up to `steps` actions, though the policy was not trained to continue them: they are put into
        the trajectory, and the rest fits as well as the denoiser happens to make it.
        """
        if self.denoiser.prefix_emb is not None:
            raise ConfigError(
                f"the policy was trained with prefix_steps {self.config.prefix_steps}.", "Use it without inpainting."
            )
        self.config = self.config.with_prefix_steps(steps)

    def encode_obs(
        self, obs: Mapping[str, Tensor], crop_offsets: Mapping[str, Tensor] | None = None, n_steps: int | None = None
    ) -> Tensor:
        """Features (B, To, Do): cameras first, then low-dimensional keys, then the output of `fusion`.

        `obs`: uint8 images (B, To, C, H, W), float32 vectors (B, To, d). If it has more steps, the first To are used,
        or the first `n_steps`. Images are cropped at `crop_offsets` {key: (B, To, 2)}, or centrally without.
        """
        n_steps = n_steps or self.config.n_obs_steps
        obs = {key: obs[key][:, :n_steps] for key in (*self.config.cameras, *self.config.low_dim)}
        parts = []
        for key in self.config.cameras:
            x = obs[key]
            offsets = crop_offsets[key].flatten(0, 1) if crop_offsets else None
            images = crop(x.flatten(0, 1), self.config.crop(key), offsets)
            parts.append(self.encoder(key)(self.normalizer.normalize_image(images)).unflatten(0, x.shape[:2]))
        parts += [self.normalizer.normalize(key, obs[key]) for key in self.config.low_dim]
        features = torch.cat(parts, dim=-1)
        if self.fusion is None:
            return features
        return torch.cat([features, self.fusion(features).to(features.dtype)], dim=-1)

    def sample_training_noise(
        self, batch_size: int, generator: torch.Generator, noise_samples: int = 1, random_crops: bool = True
    ) -> TrainingNoise:
        """The random part of the loss of a batch, see core/training_noise.py."""
        return sample_training_noise(
            self.config, self.trajectory_shape, batch_size, generator, noise_samples, random_crops
        )

    def compute_loss(
        self,
        batch: Mapping[str, Any],
        *,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        crop_offsets: Mapping[str, Tensor] | None = None,
        prefix_lengths: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the denoiser's prediction at random noise levels (DDPM, eq. 14), a scalar.

        `batch`: {"obs": {key: (B, To, ...)}, "action": (B, T, Da)}; inpainting needs the observations of all T steps.
        `noise` (B, T, D), `timesteps` (B,) and, with `prefix_steps`, `prefix_lengths` (B,) are sampled when missing by
        torch's default generator, the first two on the device of the batch. Images are cropped at `crop_offsets`
        {key: (B, To, 2)}; when missing, centrally, even in train mode.
        """
        features = self.encode_obs(batch["obs"], crop_offsets, self.config.n_encoded_steps)
        actions = self.normalizer.normalize("action", batch["action"])
        batch_size, device = len(actions), actions.device
        if noise is None:
            noise = torch.randn(batch_size, *self.trajectory_shape, device=device)
        if timesteps is None:
            timesteps = sample_timesteps(self.config, (batch_size,), device=device)
        if prefix_lengths is None and self.config.prefix_steps:
            prefix_lengths = sample_prefix_lengths(self.config, (batch_size,), None).to(device)
        lengths = None if prefix_lengths is None else prefix_lengths[:, None]
        return self.loss_from_features(features, actions, noise[:, None], timesteps[:, None], lengths)

    def loss_from_features(
        self, features: Tensor, actions: Tensor, noise: Tensor, timesteps: Tensor, prefix_lengths: Tensor | None = None
    ) -> Tensor:
        """`compute_loss` without the encoder: each encoded observation is used with R noise samples.

        `features` (B, To, Do), or (B, T, Do) when inpainting; normalized `actions` (B, T, Da); `noise` (B, R, T, D);
        `timesteps` (B, R); `prefix_lengths` (B, R), None: no action is given.
        """
        noise_samples = noise.shape[1]
        noise, timesteps = noise.flatten(0, 1), timesteps.flatten()
        features = features.repeat_interleave(noise_samples, 0)
        actions = actions.repeat_interleave(noise_samples, 0)
        if self.config.obs_as_cond:
            start = self.config.trajectory_start
            trajectory, cond = actions[:, start : start + self.config.trajectory_steps], features
            given = None if prefix_lengths is None else given_steps(self.config, prefix_lengths.flatten())
            mask = None if given is None else given[..., None]
        else:
            # Detached, as published: a target that can move towards the prediction would collapse.
            trajectory, cond = torch.cat([actions, features.detach()], dim=-1), None
            given, mask = None, self.inpainting_mask()
        self._alphas_cumprod = self._alphas_cumprod.to(trajectory.device)
        noisy = add_noise(trajectory, noise, self._alphas_cumprod[timesteps])
        if mask is not None:
            noisy = torch.where(mask, trajectory, noisy)
        target = noise if self.config.prediction_type == "epsilon" else trajectory
        loss = F.mse_loss(self.denoiser(noisy, timesteps, cond, given).float(), target, reduction="none")
        return (loss if mask is None else loss * ~mask).mean()

    @torch.no_grad()
    def predict_action(
        self,
        obs: Mapping[str, Tensor],
        generator: torch.Generator | None = None,
        prefix: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """{"action": (B, Ta, Da) to execute, starting at the last observation; "action_pred": (B, T, Da)}.

        `obs` holds at least To observations; the first To are used. `generator`, on the CPU, samples the noise.
        With `prefix_steps` N, the actions to execute start with the first `prefix_length` (B,) of `prefix` (B, N, Da),
        in raw units; ConfigError if the policy has none.
        """
        features = self.encode_obs(obs)
        noise = self.sample_noise(len(features), generator).to(features.device)
        return self.predict_from_features(features, noise, None, prefix, prefix_length)

    @torch.no_grad()
    def predict_from_features(
        self,
        features: Tensor,
        noise: Tensor,
        make_denoiser: DenoiserFactory | None = None,
        prefix: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`predict_action` from features (B, To, Do) and noise (n_noise_tensors, B, T, D). `make_denoiser` replaces the
        denoiser by a faster equivalent (inference/folded_denoiser.py).
        """
        config = self.config
        inpainting = given = None
        if prefix is not None:
            if not config.prefix_steps:
                raise no_prefix_error()
            assert prefix_length is not None
            given = given_steps(config, prefix_length)
            inpainting = (given[..., None], place_prefix(config, self.normalizer.normalize("action", prefix)))
        if not config.obs_as_cond:
            values = F.pad(features, (config.action_dim, 0, 0, config.trajectory_steps - config.n_obs_steps))
            inpainting = (self.inpainting_mask(), values)
        x = sample((make_denoiser or self._make_denoiser)(features, given), noise, self.steps, inpainting)
        actions = self.normalizer.unnormalize("action", x[..., : config.action_dim])
        start = config.action_start
        return {"action": actions[:, start : start + config.n_action_steps], "action_pred": actions}

    def _make_denoiser(self, features: Tensor, given: Tensor | None) -> DenoiseFn:
        cond = features if self.config.obs_as_cond else None
        timesteps = torch.tensor([step.timestep for step in self.steps], device=features.device)
        return lambda x, i: self.denoiser(x, timesteps[i], cond, given)


def _make_fusion(obs_dim: int, hidden_dim: int) -> nn.Module:
    """MLP from all features of a step (..., obs_dim) to (..., FUSION_DIM)."""
    return nn.Sequential(
        nn.Linear(obs_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, FUSION_DIM),
    )
