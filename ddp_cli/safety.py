"""Limits of actions, the same in evaluation and on a robot. Requires numpy only; this file may be copied.

Delta actions (Ta, 7) are clipped to [-1, 1], the range of the controller.
Absolute actions (Ta, 10) are poses, not fractions of a range:
- the position [m] is clipped to a box: the range of the training positions, plus a margin;
- the rotation-6d is orthonormalized by Gram-Schmidt; a degenerate one (a row near zero, or nearly parallel rows) is
  replaced by the previous rotation;
- the gripper is clipped to [-1, 1].
Actions that are not finite raise an error and are never repaired: nothing can be inferred from such a policy. So does
a degenerate rotation without a previous action.

Shapes: Ta steps of a chunk, Da 7 or 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WIDTHS = {"delta": 7, "absolute": 10}
"""Da of each action convention."""
POSITION_MARGIN = 0.05  # [m]
MIN_ROW_NORM = 0.01  # of the first row, and of the component of the second orthogonal to it
MAX_FLOAT32 = np.finfo(np.float32).max
NEXT_STEP = "Use another checkpoint."
POSE_HINT = "Give the end-effector pose: position [m] (3), rotation-6d (6), gripper (1); gripper 0 leaves it unchanged."


class ActionError(ValueError):
    """Actions or limits that cannot be used. `message` says what is wrong, `hint` the next step."""

    def __init__(self, message: str, hint: str = NEXT_STEP) -> None:
        super().__init__(f"{message} {hint}".rstrip())
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class ActionLimits:
    """Limits of one action convention. `low` and `high`: box of absolute positions [m], by default unlimited.

    ActionError if the convention is unknown or the box is not one.
    """

    actions: str
    low: tuple[float, ...] = (-np.inf,) * 3
    high: tuple[float, ...] = (np.inf,) * 3

    def __post_init__(self) -> None:
        if self.actions not in WIDTHS:
            raise ActionError(f"unknown actions '{self.actions}'.", f"Valid: {', '.join(WIDTHS)}.")
        is_box = len(self.low) == len(self.high) == 3
        if not is_box or not all(low <= high for low, high in zip(self.low, self.high, strict=True)):  # rejects nan
            raise ActionError(f"positions from {list(self.low)} to {list(self.high)} are not a box.", "")

    @classmethod
    def from_range(cls, actions: str, low: Sequence[float], high: Sequence[float]) -> Self:
        """Limits of a policy trained on positions from `low` to `high`, (3,) each [m]. Delta actions have no box."""
        if actions == "delta":
            return cls(actions)
        bounds = (np.asarray(bound, np.float64).reshape(-1) for bound in (low, high))
        lower, upper = (tuple((x + sign * POSITION_MARGIN).tolist()) for x, sign in zip(bounds, (-1, 1), strict=True))
        return cls(actions, lower, upper)

    @classmethod
    def from_normalizer(cls, actions: str, scale: Sequence[float], offset: Sequence[float]) -> Self:
        """Limits of a policy whose actions are normalized by y = x * scale + offset, (Da,) each.

        For checkpoints that do not record the range of their training positions. The normalizer maps that range to
        [-1, 1]. Scale 1 has two meanings:

        - with offset 0 the coordinate is not normalized, as in published checkpoints: its range is -1 to 1 m;
        - with another offset it was constant in training and is mapped to 0: its range is a single value.
        """
        if actions == "delta":
            return cls(actions)
        s, o = np.asarray(scale[:3], np.float64), np.asarray(offset[:3], np.float64)
        is_constant = (s == 1.0) & (o != 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):  # a scale of 0 is no box
            center, half_range = -o / s, np.where(is_constant, 0.0, 1.0 / np.abs(s))
        return cls.from_range(actions, (center - half_range).tolist(), (center + half_range).tolist())

    @classmethod
    def from_json(cls, limits: Mapping[str, Sequence[float | None]]) -> Self:
        """Limits in policy.json: "low" and "high" of every value of an action, (Da,) each; None for no limit.

        ActionError if they are not the limits of an action.
        """
        low, high = limits["low"], limits["high"]
        if len(low) != len(high) or len(low) not in WIDTHS.values():
            raise ActionError(f"limits of {len(low)} and {len(high)} values are not those of an action.", "")
        if len(low) == WIDTHS["delta"]:
            return cls("delta")
        return cls(
            "absolute",
            tuple(-np.inf if x is None else float(x) for x in low[:3]),
            tuple(np.inf if x is None else float(x) for x in high[:3]),
        )

    def to_json(self) -> dict[str, list[float | None]]:
        """The limits as `from_json` reads them."""
        if self.actions == "delta":
            return {"low": [-1.0] * self.dim, "high": [1.0] * self.dim}
        low, high = ([x if np.isfinite(x) else None for x in bounds] for bounds in (self.low, self.high))
        unlimited: list[float | None] = [None] * 6
        return {"low": [*low, *unlimited, -1.0], "high": [*high, *unlimited, 1.0]}

    @property
    def dim(self) -> int:
        """Da."""
        return WIDTHS[self.actions]

    def clamp(self, chunk: NDArray[np.floating[Any]], previous_action: Array | None, context: str = "") -> Array:
        """`chunk` (Ta, Da) clamped to the limits, float64. `previous_action` (Da,) precedes the chunk, None at the
        start of an episode.

        ActionError if the chunk is not finite or has another width, or if it starts with a degenerate rotation and
        there is no previous action; `context` says in the message where that happened.
        """
        where = f" ({context})" if context else ""
        if chunk.ndim != 2 or chunk.shape[1] != self.dim:
            raise ActionError(
                f"the policy predicts actions of shape {chunk.shape}{where}, expected (steps, {self.dim}).",
                f"Use a policy with {self.actions} actions.",
            )
        clamped = np.array(chunk, np.float64)
        if not (np.abs(clamped) <= MAX_FLOAT32).all():  # also rejects nan
            raise ActionError(f"the policy predicts actions that are not finite{where}.")
        if self.actions == "delta":
            return np.clip(clamped, -1.0, 1.0)
        valid = is_rotation(clamped[:, 3:9])
        if previous_action is None and len(valid) and not valid[0]:
            raise ActionError(
                f"the policy predicts a degenerate rotation {clamped[0, 3:9].round(4).tolist()}{where}, "
                "and there is no previous one to hold."
            )
        clamped[:, :3] = np.clip(clamped[:, :3], self.low, self.high)
        clamped[valid, 3:9] = _orthonormalize(clamped[valid, 3:9])
        for i in np.flatnonzero(~valid):
            clamped[i, 3:9] = clamped[i - 1, 3:9] if i > 0 or previous_action is None else previous_action[3:9]
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

        ActionError if `start` is missing for absolute actions, or invalid.
        """
        if start is not None:
            return self.validate_action(start, "start")
        if self.actions != "delta":
            raise ActionError("absolute actions need a pose to hold before the first chunk.", POSE_HINT)
        return np.zeros(self.dim)

    def validate_action(self, action: NDArray[np.floating[Any]], name: str) -> Array:
        """`action` (Da,) as float64; ActionError that begins with `name` if it is not an action of this convention."""
        values = np.array(action, np.float64)
        is_valid = values.shape == (self.dim,) and np.isfinite(values).all()
        if not is_valid or (self.actions == "absolute" and not is_rotation(values[None, 3:9]).all()):
            hint = POSE_HINT if self.actions == "absolute" else ""
            raise ActionError(f"{name} = {values.tolist()} is not an action ({self.actions}, {self.dim} values).", hint)
        return values


def is_rotation(rotations_6d: Array) -> NDArray[np.bool_]:
    """Which of the rotation-6d (n, 6) define a rotation; bool (n,)."""
    a, b = rotations_6d[:, :3], rotations_6d[:, 3:]
    norm = np.linalg.norm(a, axis=1)
    return (norm >= MIN_ROW_NORM) & (np.linalg.norm(np.cross(a, b), axis=1) >= MIN_ROW_NORM * norm)


def _orthonormalize(rotations_6d: Array) -> Array:
    """Rotation-6d (n, 6) with orthonormal rows, by Gram-Schmidt."""
    a, b = rotations_6d[:, :3], rotations_6d[:, 3:]
    x = a / np.linalg.norm(a, axis=1, keepdims=True)
    y = b - (x * b).sum(1, keepdims=True) * x
    return np.concatenate([x, y / np.linalg.norm(y, axis=1, keepdims=True)], axis=1)
