"""Heads that regress the action chunk and the pose of the object directly from the features of the encoders.

The diffusion loss trains an encoder slowly: at most noise levels the noisy actions predict the target better than the
features do. The heads are trained with the policy (losses.py) but are not part of it.

Shapes: B batch, To observation steps, T horizon, Da action, Do features.
"""

from __future__ import annotations

from torch import nn

from ddp_cli.core.policy import FUSION_DIM, DiffusionPolicy
from ddp_cli.train_config import TrainConfig

HIDDEN_DIM = 256


def make_heads(config: TrainConfig, policy: DiffusionPolicy) -> nn.ModuleDict:
    """The heads whose loss has a weight above 0.

    `action`: features (B, To Do), or the fused features only (B, To FUSION_DIM), -> chunk (B, T Da).
    `object`: features (B, To, Do) -> pose of the object (B, To, object_dim).
    """
    heads = nn.ModuleDict()
    if config.action_loss:
        n_steps, chunk_dim = policy.config.n_encoded_steps, policy.config.horizon * policy.config.action_dim
        if policy.config.fusion:  # linear, so that the fused features must be as easy to use for the denoiser
            heads["action"] = nn.Linear(n_steps * FUSION_DIM, chunk_dim)
        else:
            heads["action"] = _mlp(n_steps * policy.feature_dim, chunk_dim)
    if config.object_weight:
        heads["object"] = _mlp(policy.feature_dim, policy.config.task.object_dim)
    return heads


def _mlp(in_features: int, out_features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_features, HIDDEN_DIM), nn.ReLU(), nn.Linear(HIDDEN_DIM, out_features))
