"""Optimizer and learning-rate schedule of the published diffusion policy.

On a GPU a step may be recorded in a CUDA graph (step_graph.py): then everything that changes is a tensor.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ddp_cli.train_config import TrainConfig
from ddp_cli.training.losses import Objective


def make_optimizer(config: TrainConfig, objective: Objective, device: torch.device) -> torch.optim.AdamW:
    """AdamW with the published weight-decay groups."""
    policy = objective.policy
    decay, no_decay = weight_decay_groups(policy.denoiser)
    fusion = policy.fusion.parameters() if policy.fusion is not None else []
    encoder = [*policy.encoders.parameters(), *fusion, *objective.heads.parameters()]
    groups = [
        {"params": decay, "weight_decay": config.transformer_weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
        {"params": encoder, "weight_decay": config.obs_encoder_weight_decay},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)
    _allow_recording(optimizer, device)
    return optimizer


def _allow_recording(optimizer: torch.optim.AdamW, device: torch.device) -> None:
    if device.type == "cuda":
        optimizer._warned_capturable_if_run_uncaptured = True  # it runs in both ways
        for group in optimizer.param_groups:
            group["capturable"], group["lr"] = True, torch.tensor(float(group["lr"]), device=device)


def set_learning_rate(optimizer: torch.optim.AdamW, lr: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def optimizer_state(optimizer: torch.optim.AdamW) -> dict[str, Any]:
    """The state of the optimizer, the same on every device."""
    state = optimizer.state_dict()
    groups = [{**group, "lr": float(group["lr"]), "capturable": False} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def load_optimizer_state(optimizer: torch.optim.AdamW, state: dict[str, Any], device: torch.device) -> None:
    """Restore a state returned by `optimizer_state`."""
    optimizer.load_state_dict(state)
    _allow_recording(optimizer, device)


def weight_decay_groups(denoiser: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with and without weight decay. None on biases, norms and position embeddings."""
    parameters = list(denoiser.parameters())
    return [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim != 2]


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up (at most 5% of the run), then cosine decay to 0 at step `total`."""
    warmup = min(config.warmup_steps, total // 20)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class SafeStep:
    """Optimizer step that clips the gradient norm to `max_norm` (0: no clipping) and skips non-finite gradients.

    The decision is made on the device, so a GPU never waits for the host. `skipped` counts all skipped steps,
    `consecutive_skips` the current series of them and `max_consecutive_skips` the longest one.
    """

    def __init__(self, optimizer: torch.optim.AdamW, max_norm: float, device: torch.device) -> None:
        self.optimizer, self.max_norm = optimizer, max_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.skipped = torch.zeros((), device=device)
        self.consecutive_skips = torch.zeros((), device=device)
        self.max_consecutive_skips = torch.zeros((), device=device)

    def __call__(self) -> Tensor:
        """Apply the current gradients; returns their norm before clipping, a scalar."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.max_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.max_norm, norm)
        skip = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # read by the fused kernel
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.skipped += skip
        self.consecutive_skips.add_(1).mul_(skip)
        torch.maximum(self.max_consecutive_skips, self.consecutive_skips, out=self.max_consecutive_skips)
        return norm
