"""The training objective: the policy's diffusion loss and auxiliary losses for the encoders.

The diffusion loss trains an encoder slowly: at most noise levels the noisy actions predict the target better than the
features do. The auxiliary heads regress the action chunk and the pose of the object directly from the features. They
are trained with the policy but are not part of it.

Shapes: B batch, To observation steps, T horizon, Da action, Do features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ddp_cli.config import TrainConfig
from ddp_cli.core.normalizer import Normalizer
from ddp_cli.core.policy import FUSION_DIM, DiffusionPolicy, TrainingNoise
from ddp_cli.core.windows import Batch


class Objective(nn.Module):
    """The policy and its auxiliary heads; a head exists only if its loss has a weight above 0."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        policy = config.policy
        self.policy = DiffusionPolicy(policy)
        self.chunk_shape = (policy.horizon, policy.action_dim)
        feature_dim, object_dim = self.policy.feature_dim, policy.task.object_dim
        self.weights = {"action": config.action_loss, "object": config.object_weight}
        self.heads = nn.ModuleDict()
        if config.action_loss:
            n_steps, chunk_dim = policy.n_encoded_steps, policy.horizon * policy.action_dim
            if policy.fusion:  # linear, so that the fused features must be as easy to use for the denoiser
                self.heads["action"] = nn.Linear(n_steps * FUSION_DIM, chunk_dim)
            else:
                self.heads["action"] = _make_head(n_steps * feature_dim, chunk_dim)
        if config.object_weight:
            self.heads["object"] = _make_head(feature_dim, object_dim)
            self.object_scale = Normalizer({"object": object_dim})

    def forward(self, batch: Batch, noise: TrainingNoise) -> dict[str, Tensor]:
        """Scalar losses by name: `noise` (the diffusion loss), one per head, and `total`, their weighted sum."""
        policy = self.policy
        features = policy.encode_obs(batch["obs"], noise.crop_offsets, policy.config.n_encoded_steps)
        actions = policy.normalizer.normalize("action", batch["action"])
        losses = {"noise": policy.loss_from_features(features, actions, noise.noise, noise.timesteps)}
        if "action" in self.heads:
            inputs = features[..., -FUSION_DIM:] if policy.fusion is not None else features
            chunk = self.heads["action"](inputs.flatten(1)).unflatten(1, self.chunk_shape)
            losses["action"] = F.mse_loss(chunk.float(), actions)
        if "object" in self.heads:
            target = self.object_scale.normalize("object", batch["object"])
            losses["object"] = F.mse_loss(self.heads["object"](features).float(), target)
        total = losses["noise"]
        for name in self.heads:
            total = total + self.weights[name] * losses[name]
        return losses | {"total": total}


def _make_head(in_features: int, out_features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_features, 256), nn.ReLU(), nn.Linear(256, out_features))
