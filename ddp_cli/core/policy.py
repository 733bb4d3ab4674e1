"""The diffusion policy: observations in, a chunk of actions out.

Diffusion Policy (Chi et al. 2023), section III: p(A | O) by denoising, conditioned on the features of the
last To observations; the chunk has T steps, of which Ta are executed before the next is made.

Shapes: B batch, To n_obs_steps, T horizon, Ta n_action_steps, Da action, Do features, D trajectory (Da, or
Da + Do when inpainting), R noise samples per observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddp_cli.config import PolicyConfig
from ddp_cli.core.denoiser import Denoiser
from ddp_cli.core.diffusion import denoising_steps, make_noising, sample
from ddp_cli.core.normalizer import Normalizer
from ddp_cli.core.vision import FEATURES, ImageEncoder, crop, random_crop_offsets
from ddp_cli.core.windows import upload
from ddp_cli.tasks import IMAGE_SIZE

BeginChain = Callable[[Tensor], Callable[[Tensor, int], Tensor]]
"""From the features of a batch to the network's output for a trajectory in step i of the chain."""


FUSED = 128
"""How many features `fusion` adds."""


@dataclass(frozen=True)
class TrainingNoise:
    """What is random in the loss of a batch. It is drawn for a whole batch and then divided, so a sample
    sees the same noise however many processes or parts share the batch.
    """

    crop_offsets: dict[str, Tensor]  # per camera (B, frames, 2); empty: central crops
    noise: Tensor  # (B, R, T, D)
    timesteps: Tensor  # (B, R)

    def part(self, rows: slice, device: torch.device) -> TrainingNoise:
        """Those of some samples, on `device`."""
        crop_offsets = {key: upload(c[rows], device) for key, c in self.crop_offsets.items()}
        return TrainingNoise(crop_offsets, upload(self.noise[rows], device), upload(self.timesteps[rows], device))


class DiffusionPolicy(nn.Module):
    """Encoders, denoiser, normaliser and noise schedule, built from a PolicyConfig."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        encoders = {key: ImageEncoder(config.encoder, config.crop_shape) for key in config.image_keys}
        self.encoders = nn.ModuleDict(encoders)
        self.normalizer = Normalizer({**config.low_dim, "action": config.action_dim})
        seen = FEATURES * len(self.encoders) + sum(config.low_dim.values())
        self.fusion = _fusion(seen, config.fusion) if config.fusion else None
        self.feature_dim = seen + (FUSED if config.fusion else 0)
        self.denoiser = Denoiser(config, self.feature_dim)
        self.noising = make_noising(config)
        self.steps = denoising_steps(config)

    @property
    def device(self) -> torch.device:
        return self.denoiser.pos_emb.device

    def set_sampler(self, sampler: str | None, num_inference_steps: int | None) -> None:
        """Changes how chunks are sampled, by the rule of `PolicyConfig.with_sampler`."""
        self.config = self.config.with_sampler(sampler, num_inference_steps)
        self.steps = denoising_steps(self.config)

    def encode_obs(
        self, obs: Mapping[str, Tensor], crop_offsets: Mapping[str, Tensor] | None = None, frames: int | None = None
    ) -> Tensor:
        """Features (B, To, Do): cameras first, then low-dimensional keys, then what `fusion` makes of these.

        `obs`: uint8 images (B, To, 3, 84, 84), float32 low-dim (B, To, d); of more steps the first To are
        taken, or the first `frames`. Crops begin at `crop_offsets` {key: (B, To, 2)}, or are central.
        """
        steps = frames or self.config.n_obs_steps
        obs = {key: obs[key][:, :steps] for key in (*self.encoders, *self.config.low_dim)}
        features = []
        for key, encoder in self.encoders.items():
            x = obs[key]
            pictures = crop(
                x.flatten(0, 1), self.config.crop_shape, crop_offsets[key].flatten(0, 1) if crop_offsets else None
            )
            features.append(encoder(self.normalizer.image(pictures)).unflatten(0, x.shape[:2]))
        features += [self.normalizer.normalize(key, obs[key]) for key in self.config.low_dim]
        seen = torch.cat(features, dim=-1)
        return seen if self.fusion is None else torch.cat([seen, self.fusion(seen).to(seen.dtype)], dim=-1)

    def draw(self, b: int, generator: torch.Generator, noise_samples: int = 1, crops: bool = True) -> TrainingNoise:
        """Everything random for a batch of `b`: crops (central without), noise, diffusion steps."""
        config = self.config
        crop_offsets = {}
        if crops:
            for key in self.encoders:
                drawn = random_crop_offsets(b * config.frames, IMAGE_SIZE, config.crop_shape, generator)
                crop_offsets[key] = drawn.unflatten(0, (b, config.frames))
        width = config.action_dim + (0 if config.obs_as_cond else self.feature_dim)
        noise = torch.randn(b, noise_samples, config.trajectory_steps, width, generator=generator)
        timesteps = torch.randint(0, config.num_train_timesteps, (b, noise_samples), generator=generator)
        return TrainingNoise(crop_offsets, noise, timesteps)

    def compute_loss(self, batch: Mapping[str, Any], draws: TrainingNoise) -> Tensor:
        """Mean squared error of the prediction at random noise levels (DDPM, eq. 14), a scalar.

        `batch`: {"obs": ..., "action": (B, T, Da)}; inpainting needs the observations of all T steps. Each
        encoded observation is used R times, with other noise and another level.
        """
        features = self.encode_obs(batch["obs"], draws.crop_offsets, self.config.frames)
        return self.loss_from_features(features, self.normalizer.normalize("action", batch["action"]), draws)

    def loss_from_features(self, features: Tensor, actions: Tensor, draws: TrainingNoise) -> Tensor:
        """`compute_loss` behind the encoder: features (B, To or T, Do), normalised actions (B, T, Da)."""
        noise_samples = draws.noise.shape[1]
        noise, timesteps = draws.noise.flatten(0, 1), draws.timesteps.flatten()
        features = features.repeat_interleave(noise_samples, 0)
        actions = actions.repeat_interleave(noise_samples, 0)
        if self.config.obs_as_cond:
            start = self.config.n_obs_steps - 1 if self.config.pred_action_steps_only else 0
            trajectory = actions[:, start : start + self.config.trajectory_steps]
            cond, known = features, None
        else:
            # Detached, as published: a target that can move to meet the prediction would collapse.
            trajectory = torch.cat([actions, features.detach()], dim=-1)
            cond, known = None, self._known(trajectory)
        noisy = self.noising.add_noise(trajectory, noise, timesteps)  # type: ignore[arg-type]
        if known is not None:
            noisy = torch.where(known, trajectory, noisy)
        target = noise if self.config.prediction_type == "epsilon" else trajectory
        loss = F.mse_loss(self.denoiser(noisy, timesteps, cond).float(), target, reduction="none")
        return (loss if known is None else loss * ~known).mean()

    @torch.no_grad()
    def predict_action(
        self, obs: Mapping[str, Tensor], generator: torch.Generator | None = None, begin: BeginChain | None = None
    ) -> dict[str, Tensor]:
        """{"action": (B, Ta, Da) to execute, from the last observation on; "action_pred": (B, T, Da)}.

        `obs` holds at least To observations; the first To are used. The generator's first draw is the
        initial noise, then one per step of the chain that adds noise. `begin` is a faster way through the
        denoiser (inference/folded_denoiser.py); without, the network itself is called in every step.
        """
        config, da = self.config, self.config.action_dim
        features = self.encode_obs(obs)
        width = da if config.obs_as_cond else da + self.feature_dim
        shape = (len(features), config.trajectory_steps, width)
        x = torch.randn(shape, generator=generator, device=features.device, dtype=features.dtype)
        given = None if config.obs_as_cond else self._given(x, features)
        x = sample((begin or self._begin)(features), x, self.steps, generator, given)
        actions = self.normalizer.unnormalize("action", x[..., :da])
        start = 0 if config.pred_action_steps_only else config.n_obs_steps - 1
        return {"action": actions[:, start : start + config.n_action_steps], "action_pred": actions}

    def _begin(self, features: Tensor) -> Callable[[Tensor, int], Tensor]:
        cond = features if self.config.obs_as_cond else None
        timesteps = torch.tensor([step.timestep for step in self.steps], device=features.device)
        return lambda x, i: self.denoiser(x, timesteps[i], cond)

    def _given(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Inpainting: mask and values of what is known of the trajectory `x` (B, T, Da + Do)."""
        values = torch.zeros_like(x)
        values[:, : self.config.n_obs_steps, self.config.action_dim :] = features
        return self._known(x), values

    def _known(self, trajectory: Tensor) -> Tensor:
        """Inpainting: which entries of [action, features] are given: the features of the first To steps."""
        mask = torch.zeros_like(trajectory, dtype=torch.bool)
        mask[:, : self.config.n_obs_steps, self.config.action_dim :] = True
        return mask


def _fusion(seen: int, width: int) -> nn.Module:
    """From all features of a step (..., seen) to FUSED more."""
    return nn.Sequential(nn.Linear(seen, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, FUSED))
