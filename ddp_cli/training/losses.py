"""What training minimises: the policy's noise loss, and losses that teach an encoder early what to look for.

The noise loss teaches an encoder slowly, because at most noise levels the noisy actions themselves are the
better clue. The auxiliary heads regress what the features should tell at once: the action chunk, and where
the object is. They are trained beside the policy and are no part of it.

Shapes: B batch, To observation steps, T horizon, Da action, Do features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ddp_cli.config import TrainConfig
from ddp_cli.core.normalizer import Normalizer
from ddp_cli.core.policy import FUSED, DiffusionPolicy, TrainingNoise
from ddp_cli.core.windows import Batch


class Objective(nn.Module):
    """The policy with its auxiliary heads; a head exists only where its loss has a weight."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        policy = config.policy
        self.policy = DiffusionPolicy(policy)
        self.chunk = (policy.horizon, policy.action_dim)
        features, object_dim = self.policy.feature_dim, policy.task.object_dim
        self.weights = {"action": config.action_loss, "object": config.object_weight}
        self.heads = nn.ModuleDict()
        if config.action_loss:
            frames, chunk = policy.frames, policy.horizon * policy.action_dim
            # Fused features are made to be read at a glance, by the denoiser as by this head.
            head = nn.Linear(frames * FUSED, chunk) if policy.fusion else _head(frames * features, chunk)
            self.heads["action"] = head
        if config.object_weight:
            self.heads["object"] = _head(features, object_dim)
            self.object_scale = Normalizer({"object": object_dim})

    def forward(self, batch: Batch, draws: TrainingNoise) -> dict[str, Tensor]:
        """Losses by name, each a scalar: `noise`, those of the heads, and `total`, their weighted sum."""
        policy = self.policy
        features = policy.encode_obs(batch["obs"], draws.crop_offsets, policy.config.frames)
        actions = policy.normalizer.normalize("action", batch["action"])
        losses = {"noise": policy.loss_from_features(features, actions, draws)}
        if "action" in self.heads:
            told = features[..., -FUSED:] if policy.fusion is not None else features
            chunk = self.heads["action"](told.flatten(1)).unflatten(1, self.chunk)
            losses["action"] = F.mse_loss(chunk.float(), actions)
        if "object" in self.heads:
            target = self.object_scale.normalize("object", batch["object"])
            losses["object"] = F.mse_loss(self.heads["object"](features).float(), target)
        total = losses["noise"]
        for name in self.heads:
            total = total + self.weights[name] * losses[name]
        return losses | {"total": total}


def _head(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, outputs))
