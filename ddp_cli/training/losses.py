"""The training objective: the policy's diffusion loss and the weighted losses of the auxiliary heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ddp_cli.core.normalizer import Normalizer
from ddp_cli.core.policy import FUSION_DIM, DiffusionPolicy
from ddp_cli.core.training_noise import TrainingNoise
from ddp_cli.core.windows import Batch
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.auxiliary_heads import make_heads


class Objective(nn.Module):
    """The policy and its auxiliary heads; a head exists only if its loss has a weight above 0."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        policy = config.policy
        self.policy = DiffusionPolicy(policy)
        self.chunk_shape = (policy.horizon, policy.action_dim)
        self.weights = {"action": config.action_loss, "object": config.object_weight}
        self.heads = make_heads(config, self.policy)
        if "object" in self.heads:
            self.object_scale = Normalizer({"object": ["range"] * policy.task.object_dim})

    def forward(self, batch: Batch, noise: TrainingNoise) -> dict[str, Tensor]:
        """Scalar losses by name: `noise` (the diffusion loss), one per head, and `total`, their weighted sum."""
        policy = self.policy
        features = policy.encode_obs(batch["obs"], noise.crop_offsets, policy.config.n_encoded_steps)
        actions = policy.normalizer.normalize("action", batch["action"])
        diffusion_loss = policy.loss_from_features(
            features, actions, noise.noise, noise.timesteps, noise.prefix_lengths
        )
        losses = {"noise": diffusion_loss}
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
