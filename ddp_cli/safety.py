"""What a robot may be told to do: the one rule by which episodes and streams bound actions.

Delta actions (Ta, 7) are clipped to [-1, 1], what the controller takes.
Absolute ones (Ta, 10) never are: they are places and rotations, not fractions of a range. Of them
- the position [m] stays in the box of the positions in the store that the policy learned from, and a margin;
- the rotation-6d is made a rotation by Gram-Schmidt, so two rows that are nearly one; where they do not say
  a rotation (a row near zero, or both nearly parallel), the rotation before is kept;
- the gripper is clipped to [-1, 1].
What is not finite is refused, never mended: nothing is known of what such a policy wants.

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

MARGIN = 0.05  # [m]
DEGENERATE = 0.01  # shortest row, and part of the second across the first, whose direction is not noise
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Safety:
    """The rule for one action convention. `low` and `high`: box of absolute positions [m]; without, no box."""

    actions: str
    low: tuple[float, ...] = (-np.inf,) * 3
    high: tuple[float, ...] = (np.inf,) * 3

    @classmethod
    def from_normalizer(
        cls, actions: str, scale: Sequence[float], offset: Sequence[float], margin: float = MARGIN
    ) -> Self:
        """The rule for a policy whose normaliser of actions is y = x * scale + offset, (Da,) each.

        It takes the positions of the store to [-1, 1] and so knows their range. A coordinate that hardly
        varied there is only shifted to 0, with scale 1: its range is that one value.
        """
        if actions == "delta":
            return cls(actions)
        s, o = np.asarray(scale[:3], np.float64), np.asarray(offset[:3], np.float64)
        centre, reach = -o / s, np.where(s == 1.0, 0.0, 1.0 / s) + margin
        return cls(actions, tuple((centre - reach).tolist()), tuple((centre + reach).tolist()))

    @property
    def dim(self) -> int:
        """Da."""
        return int(ACTIONS[self.actions]["dim"])

    def bound(self, chunk: NDArray[np.floating[Any]], before: Array, where: str) -> Array:
        """`chunk` (Ta, Da) kept inside what is safe, float64. `before` (Da,) is the action before it.

        DdpError if it is not finite or has another width; its message ends in `where` it happened.
        """
        if chunk.ndim != 2 or chunk.shape[1] != self.dim:
            raise DdpError(
                f"the policy predicts actions of shape {chunk.shape} ({where}), not (steps, {self.dim}).",
                f"Use a policy of {self.actions} actions.",
            )
        safe = np.array(chunk, np.float64)
        if not (np.abs(safe) <= LARGEST).all():  # nan is not, either
            raise DdpError(f"the policy predicts actions that are not finite ({where}).", "Use another checkpoint.")
        if self.actions == "delta":
            return np.clip(safe, -1.0, 1.0)
        safe[:, :3] = np.clip(safe[:, :3], self.low, self.high)
        safe[:, 3:9] = _rotations(safe[:, 3:9], before[3:9])
        safe[:, 9] = np.clip(safe[:, 9], -1.0, 1.0)
        return safe

    def hold(self, last: Array) -> Array:
        """The action (Da,) that stops after `last`: no motion, or its goal again; the same gripper."""
        safe = last.copy()
        if self.actions == "delta":
            safe[:-1] = 0.0
        return safe

    def first(self, start: NDArray[np.floating[Any]] | None) -> Array:
        """The action (Da,) to hold before there is any: `start`, or for delta actions nothing at all.

        ConfigError if it is needed and missing, or no action of this convention.
        """
        hint = "Give the pose of the hand: position [m] (3), rotation-6d (6), gripper (1); 0 leaves it as it is."
        if start is None:
            if self.actions != "delta":
                raise ConfigError("absolute actions need a goal to hold before the first chunk.", hint)
            return np.zeros(self.dim)
        first = np.array(start, np.float64)
        said = first.shape == (self.dim,) and np.isfinite(first).all()
        if not said or (self.actions == "absolute" and not _say_rotation(first[None, 3:9]).all()):
            raise ConfigError(f"start = {first.tolist()} is no {self.actions} action ({self.dim} numbers).", hint)
        return first


def _say_rotation(rows: Array) -> NDArray[np.bool_]:
    """Which of the rotation-6d (n, 6) say a rotation."""
    a, b = rows[:, :3], rows[:, 3:]
    length = np.linalg.norm(a, axis=1)
    return (length >= DEGENERATE) & (np.linalg.norm(np.cross(a, b), axis=1) >= DEGENERATE * length)


def _rotations(rows: Array, before: Array) -> Array:
    """(n, 6) projected to rotations; the one before where a row says none."""
    said = _say_rotation(rows)
    last = before
    out = np.empty_like(rows)
    for i in range(len(rows)):
        last = matrix_to_6d(matrix_from_6d(rows[i])) if said[i] else last
        out[i] = last
    return out
