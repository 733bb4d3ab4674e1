"""Limits of actions, the same in evaluation and on a robot.

Delta actions (Ta, 7) are clipped to [-1, 1], the range of the controller.
Absolute actions (Ta, 10) are poses, not fractions of a range:
- the position [m] is clipped to the bounding box of the training positions, plus a margin;
- the rotation-6d is orthonormalized by Gram-Schmidt; a degenerate one (a row near zero, or nearly parallel rows) is
  replaced by the previous rotation;
- the gripper is clipped to [-1, 1].
Actions that are not finite raise an error and are never repaired: nothing can be inferred from such a policy.

Shapes: Ta steps of a chunk, Da 7 or 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d
from ddp_cli.tasks import ACTIONS

Array = NDArray[np.float64]

POSITION_MARGIN = 0.05  # [m]
MIN_ROW_NORM = 0.01  # of the first row, and of the component of the second orthogonal to it
MAX_FLOAT32 = np.finfo(np.float32).max


@dataclass(frozen=True)
class ActionLimits:
    """Limits of one action convention. `low` and `high`: bounding box of absolute positions [m], by default none."""

    actions: str
    low: tuple[float, ...] = (-np.inf,) * 3
    high: tuple[float, ...] = (np.inf,) * 3

    @classmethod
    def from_normalizer(
        cls, actions: str, scale: Sequence[float], offset: Sequence[float], margin: float = POSITION_MARGIN
    ) -> Self:
        """Limits of a policy whose actions are normalized by y = x * scale + offset, (Da,) each.

        The normalizer maps the range of the training positions to [-1, 1]. A coordinate that was constant in training
        has scale 1 and is mapped to 0: its range is a single value.
        """
        if actions == "delta":
            return cls(actions)
        s, o = np.asarray(scale[:3], np.float64), np.asarray(offset[:3], np.float64)
        center, half_range = -o / s, np.where(s == 1.0, 0.0, 1.0 / s) + margin
        return cls(actions, tuple((center - half_range).tolist()), tuple((center + half_range).tolist()))

    @property
    def dim(self) -> int:
        """Da."""
        return int(ACTIONS[self.actions]["dim"])

    def clamp(self, chunk: NDArray[np.floating[Any]], previous_action: Array, context: str) -> Array:
        """`chunk` (Ta, Da) clamped to the limits, float64. `previous_action` (Da,) precedes the chunk.

        DdpError if the chunk is not finite or has another width; `context` says in the message where that happened.
        """
        if chunk.ndim != 2 or chunk.shape[1] != self.dim:
            raise DdpError(
                f"the policy predicts actions of shape {chunk.shape} ({context}), expected (steps, {self.dim}).",
                f"Use a policy with {self.actions} actions.",
            )
        clamped = np.array(chunk, np.float64)
        if not (np.abs(clamped) <= MAX_FLOAT32).all():  # also rejects nan
            raise DdpError(f"the policy predicts actions that are not finite ({context}).", "Use another checkpoint.")
        if self.actions == "delta":
            return np.clip(clamped, -1.0, 1.0)
        clamped[:, :3] = np.clip(clamped[:, :3], self.low, self.high)
        clamped[:, 3:9] = _project_rotations(clamped[:, 3:9], previous_action[3:9])
        clamped[:, 9] = np.clip(clamped[:, 9], -1.0, 1.0)
        return clamped

    def hold_action(self, last_action: Array) -> Array:
        """The action (Da,) that stops after `last_action`: no motion, or the same goal; the gripper is unchanged."""
        action = last_action.copy()
        if self.actions == "delta":
            action[:-1] = 0.0
        return action

    def initial_action(self, start: NDArray[np.floating[Any]] | None) -> Array:
        """The action (Da,) to hold before the first chunk: `start`, by default zeros for delta actions.

        ConfigError if `start` is missing for absolute actions, or invalid.
        """
        hint = (
            "Give the end-effector pose: position [m] (3), rotation-6d (6), gripper (1); gripper 0 leaves it unchanged."
        )
        if start is None:
            if self.actions != "delta":
                raise ConfigError("absolute actions need a pose to hold before the first chunk.", hint)
            return np.zeros(self.dim)
        action = np.array(start, np.float64)
        is_valid = action.shape == (self.dim,) and np.isfinite(action).all()
        if not is_valid or (self.actions == "absolute" and not _is_rotation(action[None, 3:9]).all()):
            raise ConfigError(f"start = {action.tolist()} is not an action ({self.actions}, {self.dim} values).", hint)
        return action


def _is_rotation(rotations_6d: Array) -> NDArray[np.bool_]:
    """Which of the rotation-6d (n, 6) define a rotation; bool (n,)."""
    a, b = rotations_6d[:, :3], rotations_6d[:, 3:]
    norm = np.linalg.norm(a, axis=1)
    return (norm >= MIN_ROW_NORM) & (np.linalg.norm(np.cross(a, b), axis=1) >= MIN_ROW_NORM * norm)


def _project_rotations(rotations_6d: Array, previous: Array) -> Array:
    """Orthonormalize rotation-6d (n, 6); degenerate ones are replaced by the one before, the first by `previous`."""
    is_rotation = _is_rotation(rotations_6d)
    projected = np.empty_like(rotations_6d)
    projected[is_rotation] = matrix_to_6d(matrix_from_6d(rotations_6d[is_rotation]))
    for i in np.flatnonzero(~is_rotation):
        projected[i] = projected[i - 1] if i > 0 else previous
    return projected
