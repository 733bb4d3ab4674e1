"""Optimiser, learning-rate schedule and EMA, as published."""

from __future__ import annotations

import math

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from ddp_cli.config import TrainConfig
from ddp_cli.training.losses import Objective


def make_optimizer(config: TrainConfig, objective: Objective) -> torch.optim.AdamW:
    """AdamW with the published groups of weight decay."""
    policy = objective.policy
    decayed, plain = policy.denoiser.decayed()
    fusion = policy.fusion.parameters() if policy.fusion is not None else []
    encoder = [*policy.encoders.parameters(), *fusion, *objective.heads.parameters()]
    groups = [
        {"params": decayed, "weight_decay": config.transformer_weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": encoder, "weight_decay": config.obs_encoder_weight_decay},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up, then half a cosine down to 0 at `total`."""
    warmup = min(config.warmup_steps, total // 20)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def make_ema(config: TrainConfig, objective: Objective) -> EMAModel:
    """The moving average of the policy's weights."""
    return EMAModel(
        objective.policy.parameters(),
        decay=config.ema_max_value,
        use_ema_warmup=True,
        inv_gamma=config.ema_inv_gamma,
        power=config.ema_power,
        # diffusers counts a step before it computes the decay, the published code after
        update_after_step=1,
        foreach=next(objective.parameters()).device.type != "mps",
    )


class SafeStep:
    """Optimiser steps that clip the gradient (to `max_norm`; 0: never) and leave out those that are not finite.

    The decision is made where the gradients are: on a GPU nothing waits for it. `skipped` and `in_a_row`
    count steps left out, in all and just before now.
    """

    def __init__(self, optimizer: torch.optim.AdamW, max_norm: float, device: torch.device) -> None:
        self.optimizer, self.max_norm = optimizer, max_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.skipped = torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device)
        self.longest = torch.zeros((), device=device)

    def __call__(self) -> Tensor:
        """One step on the gradients that are there; returns their norm before clipping, a scalar."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.max_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.max_norm, norm)
        bad = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # the fused kernel looks at it
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.skipped += bad
        self.in_a_row = (self.in_a_row + 1) * bad
        self.longest = torch.maximum(self.longest, self.in_a_row)
        return norm
