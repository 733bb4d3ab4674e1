"""The random part of the training loss: crops of images, noise levels (timesteps), noise and lengths of prefixes.

Shapes: B batch, R noise samples per observation, T steps and D width of a trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_cli.core.prefix import sample_prefix_lengths
from ddp_cli.core.vision import sample_crop_offsets
from ddp_cli.core.windows import to_device_async
from ddp_cli.policy_config import PolicyConfig


@dataclass(frozen=True)
class TrainingNoise:
    """The random part of the loss of a batch. It is sampled for a whole batch and then sliced, so a sample gets the
    same noise whatever the number of processes or accumulation steps.
    """

    crop_offsets: dict[str, Tensor]  # per camera (B, n_encoded_steps, 2); empty: central crops
    noise: Tensor  # (B, R, T, D)
    timesteps: Tensor  # (B, R)
    prefix_lengths: Tensor | None = None  # (B, R); None for policies without prefix_steps

    def select(self, rows: slice, device: torch.device) -> TrainingNoise:
        """The noise of the samples `rows`, on `device`."""
        return TrainingNoise(
            {key: to_device_async(offsets[rows], device) for key, offsets in self.crop_offsets.items()},
            to_device_async(self.noise[rows], device),
            to_device_async(self.timesteps[rows], device),
            None if self.prefix_lengths is None else to_device_async(self.prefix_lengths[rows], device),
        )


def sample_training_noise(
    config: PolicyConfig,
    trajectory_shape: tuple[int, int],
    batch_size: int,
    generator: torch.Generator,
    noise_samples: int,
    random_crops: bool,
) -> TrainingNoise:
    """The random part of the loss of a batch, on the CPU: noise, timesteps, lengths of prefixes (with `prefix_steps`)
    and, if `random_crops`, crop offsets.
    """
    crop_offsets = {}
    if random_crops:
        for key, camera in config.cameras.items():
            n_images = batch_size * config.n_encoded_steps
            size = camera.height, camera.width
            offsets = sample_crop_offsets(n_images, size, config.crop(key), generator)
            crop_offsets[key] = offsets.unflatten(0, (batch_size, config.n_encoded_steps))
    noise = torch.randn(batch_size, noise_samples, *trajectory_shape, generator=generator)
    shape = batch_size, noise_samples
    timesteps = sample_timesteps(config, shape, generator)
    prefix_lengths = sample_prefix_lengths(config, shape, generator) if config.prefix_steps else None
    return TrainingNoise(crop_offsets, noise, timesteps, prefix_lengths)


def sample_timesteps(
    config: PolicyConfig,
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Timesteps of noise levels, uniformly from all of them."""
    return torch.randint(0, config.num_train_timesteps, shape, generator=generator, device=device)
