"""Prefixes: actions that are already committed while a chunk is predicted, and that the chunk continues.

Training-time action conditioning (Black et al. 2025, arXiv 2512.05964): in training, a random number of the first
executed actions is given clean, without a loss; a policy then predicts the rest so that it fits. In inference the
prefix is put into the trajectory before every denoising step.

Shapes: B batch, T steps of the trajectory, N `prefix_steps`, P <= N actions of a prefix, Da action.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_cli.errors import ConfigError
from ddp_cli.policy_config import PREFIX, PREFIX_LENGTH, PolicyConfig


def sample_prefix_lengths(config: PolicyConfig, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Numbers of given actions in training, uniformly from 0 to N, on the CPU."""
    return torch.randint(0, config.prefix_steps + 1, shape, generator=generator)


def given_steps(config: PolicyConfig, lengths: Tensor) -> Tensor:
    """(B, T) bool: the steps of the trajectory that are given by prefixes of `lengths` (B,)."""
    steps = torch.arange(config.trajectory_steps, device=lengths.device) - config.action_start
    return (steps >= 0) & (steps < lengths[:, None])


def place_prefix(config: PolicyConfig, prefix: Tensor) -> Tensor:
    """Actions (B, N, Da) at their steps of a trajectory (B, T, Da), which is 0 elsewhere."""
    after = config.trajectory_steps - config.action_start - prefix.shape[1]
    return F.pad(prefix, (0, 0, config.action_start, after))


def prefix_inputs(config: PolicyConfig, prefix: Tensor | None, batch_size: int) -> dict[str, Tensor]:
    """The inputs `prefix` (B, N, Da) and `prefix_length` (B,) of a prediction, from actions (B, P, Da) in raw units;
    none for a policy without `prefix_steps`. ConfigError if it does not take the prefix.
    """
    if prefix is None:
        prefix = torch.zeros(batch_size, 0, config.action_dim)
    elif not config.prefix_steps:
        raise no_prefix_error()
    expected = (batch_size, min(prefix.shape[1], config.prefix_steps), config.action_dim)
    if prefix.shape != expected:
        raise ConfigError(
            f"the prefix has shape {tuple(prefix.shape)}, the policy takes up to {config.prefix_steps} actions of "
            f"{config.action_dim} values for each of {batch_size} observations.",
            "Give fewer actions, or train with a larger prefix_steps.",
        )
    if not prefix.isfinite().all():
        raise ConfigError("the prefix is not finite.", "Give the actions that will be executed.")
    if not config.prefix_steps:
        return {}
    length = torch.full((batch_size,), prefix.shape[1])
    return {PREFIX: F.pad(prefix, (0, 0, 0, config.prefix_steps - prefix.shape[1])), PREFIX_LENGTH: length}


def no_prefix_error() -> ConfigError:
    return ConfigError("the policy takes no prefix: it has no prefix_steps.", "Train one with --set prefix_steps=4.")
