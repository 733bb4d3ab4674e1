"""Validation of the EMA policy on held-out windows, not for choosing checkpoints.

In published results the policy with the lowest validation loss had a success rate of 2.7%, the best policy 80.7%: these
metrics show over-fitting and broken training, not success.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_cli.core.windows import batch_indices, to_device
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.robots import DELTA_METRES, DELTA_RADIANS
from ddp_cli.rotation import matrix_from_6d, rotation_angle, rotvec_to_matrix
from ddp_cli.schema import ActionPart, action_slices
from ddp_cli.tasks import RECORDED
from ddp_cli.training.trainer import Trainer

SAMPLED_WINDOWS = 64  # windows on which action chunks are sampled


@torch.no_grad()
def validate(trainer: Trainer, n_batches: int = 4) -> dict[str, float]:
    """`val_loss`, `position_error_mm` and `rotation_error_deg` on held-out windows; empty if there are none.

    Only the actions of robosuite have these errors, others only the loss. Windows and noise are the same in every call.
    """
    windows, config = trainer.data.val, trainer.config
    if not len(windows):
        return {}
    generator = torch.Generator().manual_seed(config.seed)
    size = min(config.batch_size, len(windows))
    losses = []
    with trainer.ema_weights_applied():
        for i in range(n_batches):
            batch = to_device(windows.batch(batch_indices(len(windows), size, i, 0)), trainer.device)
            noise = trainer.policy.sample_training_noise(size, generator, random_crops=False)
            noise = noise.select(slice(None), trainer.device)
            lengths = None if noise.prefix_lengths is None else noise.prefix_lengths[:, 0]
            loss = trainer.policy.compute_loss(
                batch, noise=noise.noise[:, 0], timesteps=noise.timesteps[:, 0], prefix_lengths=lengths
            )
            losses.append(loss)
        metrics = {"val_loss": float(torch.stack(losses).mean())}
        if config.policy.actions == RECORDED:
            return metrics
        index = torch.linspace(0, len(windows) - 1, min(SAMPLED_WINDOWS, len(windows))).long()
        batch = to_device(windows.batch(index), trainer.device)
        sampling_generator = torch.Generator().manual_seed(config.seed)
        predicted = trainer.policy.predict_action(batch["obs"], sampling_generator)["action"]
    first = config.policy.trajectory_start + config.policy.action_start
    target = batch["action"][:, first : first + config.policy.n_action_steps]
    millimetres, degrees = action_error(config.policy, predicted.cpu().numpy(), target.cpu().numpy())
    return metrics | {"position_error_mm": millimetres, "rotation_error_deg": degrees}


def action_error(config: PolicyConfig, a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    """Mean position error [mm] and rotation error [degrees] between two batches of actions (..., Da), of all arms."""
    a, b = a.reshape(-1, a.shape[-1]).astype(np.float64), b.reshape(-1, b.shape[-1]).astype(np.float64)
    metres, radians = [], []
    for part, x in zip(config.action_parts, action_slices(config.action_parts), strict=True):
        if part.gripper:
            continue
        if part.rotation == "none":
            scale = DELTA_METRES if part.representation == "delta" else 1.0
            metres.append(np.linalg.norm(a[:, x] - b[:, x], axis=1).mean() * scale)
        else:
            radians.append(_rotation_error(part, a[:, x], b[:, x]).mean())
    return float(np.mean(metres) * 1000.0), float(np.degrees(np.mean(radians)))


def _rotation_error(part: ActionPart, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles (n,) between two batches of rotations [rad]; pi where the rotation-6d of `a` is degenerate, as an
    untrained policy may predict it.
    """
    if part.representation == "delta":
        return rotation_angle(rotvec_to_matrix(a * DELTA_RADIANS), rotvec_to_matrix(b * DELTA_RADIANS))
    with np.errstate(invalid="ignore", divide="ignore"):
        rotation, reference = matrix_from_6d(a), matrix_from_6d(b)
        is_rotation = np.isfinite(rotation).all((1, 2)) & (np.abs(np.linalg.det(rotation) - 1.0) < 1e-3)
    angles = np.full(len(a), np.pi)
    angles[is_rotation] = rotation_angle(rotation[is_rotation], reference[is_rotation])
    return angles
