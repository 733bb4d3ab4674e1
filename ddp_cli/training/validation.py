"""What the EMA policy does on held-out windows. None of it is for choosing checkpoints.

In the field's own figures the policy of the lowest validation loss succeeded 2.7% of the time, the best one
80.7%: these numbers show over-fitting and broken training, not success.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_cli.config import PolicyConfig
from ddp_cli.core.windows import batch_index, to_device
from ddp_cli.rotation import matrix_from_6d, rotation_angle, rotvec_to_matrix
from ddp_cli.tasks import DELTA_METRES, DELTA_RADIANS
from ddp_cli.training.trainer import Trainer

WINDOWS = 64  # whose chunks are sampled


@torch.no_grad()
def validate(trainer: Trainer, batches: int = 4) -> dict[str, float]:
    """`val_loss`, `position_error_mm` and `rotation_error_deg` on held-out windows; empty without any.

    Windows and noise are the same every time.
    """
    windows, config = trainer.data.val, trainer.config
    if not len(windows):
        return {}
    generator = torch.Generator().manual_seed(config.seed)
    size = min(config.batch_size, len(windows))
    losses = []
    with trainer.averaged():
        for i in range(batches):
            batch = to_device(windows.batch(batch_index(len(windows), size, i, 0)), trainer.device)
            draws = trainer.policy.draw(size, generator, crops=False).part(slice(None), trainer.device)
            losses.append(trainer.policy.compute_loss(batch, draws))
        index = torch.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).long()
        batch = to_device(windows.batch(index), trainer.device)
        noise = torch.Generator(trainer.device).manual_seed(config.seed)
        predicted = trainer.policy.predict_action(batch["obs"], noise)["action"]
    first = config.policy.n_obs_steps - 1
    demonstrated = batch["action"][:, first : first + config.policy.n_action_steps]
    millimetres, degrees = action_error(config.policy, predicted.cpu().numpy(), demonstrated.cpu().numpy())
    return {
        "val_loss": float(torch.stack(losses).mean()),
        "position_error_mm": millimetres,
        "rotation_error_deg": degrees,
    }


def action_error(config: PolicyConfig, a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    """Mean difference of actions (..., 7 or 10): of the positions [mm] and of the rotations [degrees]."""
    a, b = a.reshape(-1, a.shape[-1]).astype(np.float64), b.reshape(-1, b.shape[-1]).astype(np.float64)
    delta = config.actions == "delta"
    metres = np.linalg.norm(a[:, :3] - b[:, :3], axis=1).mean() * (DELTA_METRES if delta else 1.0)
    angles = [_angle(config.actions, x, y) for x, y in zip(a, b, strict=True)]
    return float(metres * 1000.0), float(np.degrees(np.mean(angles)))


def _angle(actions: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Between the rotations of two actions [rad]; pi where an untrained policy's rows say no rotation."""
    if actions == "delta":
        return rotation_angle(*(rotvec_to_matrix(x[3:6] * DELTA_RADIANS) for x in (a, b)))
    with np.errstate(invalid="ignore", divide="ignore"):
        one, other = matrix_from_6d(a[3:9]), matrix_from_6d(b[3:9])
    proper = np.isfinite(one).all() and abs(np.linalg.det(one) - 1.0) < 1e-3
    return rotation_angle(one, other) if proper else float(np.pi)
