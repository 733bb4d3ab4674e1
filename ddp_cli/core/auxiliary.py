"""Auxiliary losses that teach an encoder early what to look for."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ddp_cli.config import PolicyConfig


class AuxiliaryHeads(nn.Module):
    """What the features should tell at once: the action chunk and where the object is.

    The noise loss teaches an encoder slowly, because at most noise levels the noisy actions themselves
    are the better clue. These heads are trained beside the policy and are no part of it. A task that names
    no object (`object_dim` 0) has no head for it.
    """

    def __init__(self, config: PolicyConfig, features: int, object_dim: int) -> None:
        super().__init__()
        self.chunk = (config.horizon, config.action_dim)
        self.action = _head(config.frames * features, config.horizon * config.action_dim)
        self.object = _head(features, object_dim) if object_dim else nn.Identity()

    def action_loss(self, cond: Tensor, actions: Tensor) -> Tensor:
        """`cond` (B, To, Do), normalised `actions` (B, T, Da)."""
        return F.mse_loss(self.action(cond.flatten(1)).unflatten(1, self.chunk).float(), actions)

    def object_loss(self, cond: Tensor, target: Tensor) -> Tensor:
        """`cond` (B, To, Do), normalised object (B, To, d)."""
        return F.mse_loss(self.object(cond).float(), target)


def _head(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, outputs))
