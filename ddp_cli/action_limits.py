"""Limits of actions, and the rule that clamps actions to them, the same in evaluation and on a robot. Requires numpy
only; this file may be copied.

Each value of an action is clipped to its limits: those of the controller, or the range of the training data plus a
margin. Rotations are not fractions of a range:
- a rotation-6d is orthonormalized by Gram-Schmidt; a degenerate one (a row near zero, or nearly parallel rows) is
  replaced by the previous rotation;
- a quaternion is normalized; one near zero is replaced by the previous one.
Actions that are not finite raise an error and are never repaired: nothing can be inferred from such a policy. So does
a degenerate rotation without a previous action.

Shapes: Ta steps of a chunk, Da action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing import Self  # Python 3.8, which robots still run, lacks it

Array = NDArray[np.float64]

POSITION_MARGIN = 0.05  # [m], added to the range of values in metres
RANGE_MARGIN = 0.05  # share of the range, added to that of other values
MIN_ROW_NORM = 0.01  # of the first row, of the component of the second orthogonal to it, and of quaternions
MAX_FLOAT32 = np.finfo(np.float32).max
NEXT_STEP = "Use another checkpoint."
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # as a rotation-6d
MOTION, GOAL, GRIPPER = "motion", "goal", "gripper"
"""Kinds of values: a motion is 0, as a rotation the identity, where the robot is stopped; a goal and a gripper stay as
they are."""


class ActionError(ValueError):
    """Actions or limits that cannot be used. `message` says what is wrong, `hint` the next step."""

    def __init__(self, message: str, hint: str = NEXT_STEP) -> None:
        super().__init__(f"{message} {hint}".rstrip())
        self.message = message
        self.hint = hint


class Part(Protocol):
    """Some consecutive values of an action, see `schema.ActionPart`."""

    @property
    def width(self) -> int: ...
    @property
    def representation(self) -> str: ...
    @property
    def rotation(self) -> str: ...
    @property
    def gripper(self) -> bool: ...
    @property
    def unit(self) -> str: ...
    @property
    def low(self) -> Sequence[float | None]: ...
    @property
    def high(self) -> Sequence[float | None]: ...


@dataclass(frozen=True)
class ActionLimits:
    """Limits `low` and `high` and the kind (MOTION, GOAL, GRIPPER) of every value of an action, (Da,) each, the
    first index of every rotation-6d and of every quaternion in it, and the index of the real part of every quaternion.

    ActionError if they are not the limits of an action.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    kinds: tuple[str, ...]
    rotations: tuple[int, ...] = ()
    quaternions: tuple[int, ...] = ()
    real_parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == len(self.kinds) > 0:
            raise ActionError(
                f"limits of {len(self.low)} and {len(self.high)} values are not those of an action of "
                f"{len(self.kinds)}.",
                "",
            )
        if not all(low <= high for low, high in zip(self.low, self.high)):  # rejects nan
            raise ActionError(f"limits from {list(self.low)} to {list(self.high)} are not a box.", "")
        if not {MOTION, GOAL, GRIPPER}.issuperset(self.kinds):
            raise ActionError(f"unknown kinds of values {list(self.kinds)}.", f"Valid: {MOTION}, {GOAL}, {GRIPPER}.")
        if not all(start >= 0 and end <= self.dim for start, end in self._rotation_bounds()):
            raise ActionError("a rotation lies outside of the action.", "")
        if not self.real_parts and any(self.kinds[i] == MOTION for i in self.quaternions):
            raise ActionError("the order of the values of a quaternion that is a motion is not known.", "Export again.")
        distances = [i - start for start, i in zip(self.quaternions, self.real_parts)]
        if len(self.real_parts) not in {0, len(self.quaternions)} or not {0, 1, 2, 3}.issuperset(distances):
            raise ActionError("real parts lie outside of the quaternions.", "")

    @classmethod
    def from_parts(
        cls, parts: Sequence[Part], low: Sequence[float] | None = None, high: Sequence[float] | None = None
    ) -> Self:
        """Limits of actions that consist of `parts`. `low` and `high`, (Da,): the range of the training data, which
        limits the values that have no limits of their own; without it they are unlimited.
        """
        dim = sum(part.width for part in parts)
        if (low is not None and len(low) != dim) or (high is not None and len(high) != dim):
            raise ActionError(f"a range of {len(low or ())} and {len(high or ())} values, expected {dim}.", "")
        lower, upper, kinds = np.full(dim, -np.inf), np.full(dim, np.inf), []
        rotations, quaternions, real_parts = [], [], []
        start = 0
        for part in parts:
            values = slice(start, start + part.width)
            if part.rotation == "rotation-6d":
                rotations.append(start)
            elif part.rotation.startswith("quaternion"):
                quaternions.append(start)
                real_parts.append(start if part.rotation == "quaternion-wxyz" else start + 3)
            elif low is not None and high is not None and part.representation != "delta":
                begin, end = np.asarray(low, np.float64)[values], np.asarray(high, np.float64)[values]
                in_metres = part.unit == "m" or part.unit.startswith("m,")
                margin = POSITION_MARGIN if in_metres else RANGE_MARGIN * (end - begin)
                lower[values], upper[values] = begin - margin, end + margin
            if part.low:
                lower[values] = [-np.inf if bound is None else bound for bound in part.low]
            if part.high:
                upper[values] = [np.inf if bound is None else bound for bound in part.high]
            kinds += [GRIPPER if part.gripper else MOTION if part.representation == "delta" else GOAL] * part.width
            start += part.width
        return cls(
            tuple(lower.tolist()),
            tuple(upper.tolist()),
            tuple(kinds),
            tuple(rotations),
            tuple(quaternions),
            tuple(real_parts),
        )

    @classmethod
    def from_json(cls, limits: Mapping[str, Any]) -> Self:
        """Limits in policy.json, as `to_json` writes them; None for no limit. ActionError if they are not limits.

        Earlier versions wrote only `low` and `high`, of 7 delta or 10 absolute values.
        """
        low, high = ([np.nan if x is None else float(x) for x in limits[key]] for key in ("low", "high"))
        lower = tuple(-np.inf if np.isnan(x) else x for x in low)
        upper = tuple(np.inf if np.isnan(x) else x for x in high)
        if "kinds" in limits:
            kinds = tuple(str(kind) for kind in limits["kinds"])
            indices = (limits["rotations"], limits["quaternions"], limits.get("real_parts", ()))  # earlier: without
            return cls(lower, upper, kinds, *(tuple(int(i) for i in group) for group in indices))
        if len(low) == len(high) == 7:
            return cls(lower, upper, (MOTION,) * 6 + (GRIPPER,))
        if len(low) == len(high) == 10:
            return cls(lower, upper, (GOAL,) * 9 + (GRIPPER,), (3,))
        raise ActionError(f"limits of {len(low)} and {len(high)} values are not those of an action.", "")

    def to_json(self) -> dict[str, Any]:
        """The limits as `from_json` reads them."""
        low, high = ([x if np.isfinite(x) else None for x in bounds] for bounds in (self.low, self.high))
        return {
            "low": low, "high": high, "kinds": list(self.kinds), "rotations": list(self.rotations),
            "quaternions": list(self.quaternions), "real_parts": list(self.real_parts),
        }  # fmt: skip

    @property
    def dim(self) -> int:
        """Da."""
        return len(self.kinds)

    @property
    def needs_start(self) -> bool:
        """Whether an action holds goals, so that some pose has to be held before the first chunk."""
        return GOAL in self.kinds

    def _rotation_bounds(self) -> list[tuple[int, int]]:
        return [(i, i + 6) for i in self.rotations] + [(i, i + 4) for i in self.quaternions]

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
                "Use a policy with actions of this width.",
            )
        clamped = np.array(chunk, np.float64)
        if not (np.abs(clamped) <= MAX_FLOAT32).all():  # also rejects nan
            raise ActionError(f"the policy predicts actions that are not finite{where}.")
        clamped = np.clip(clamped, self.low, self.high)
        for start, end in self._rotation_bounds():
            rotations = clamped[:, start:end]
            valid = self._is_rotation(rotations)
            if previous_action is None and len(valid) and not valid[0]:
                raise ActionError(
                    f"the policy predicts a degenerate rotation {rotations[0].round(4).tolist()}{where}, "
                    "and there is no previous one to hold."
                )
            normalize = _orthonormalize if end - start == 6 else _normalize_quaternions
            rotations[valid] = normalize(rotations[valid])
            for i in np.flatnonzero(~valid):
                rotations[i] = rotations[i - 1] if i > 0 or previous_action is None else previous_action[start:end]
        return clamped

    def with_signs_of(self, reference: Array, actions: Array) -> Array:
        """`actions` (..., Da) with each quaternion q replaced by -q, the same rotation, where that is closer to the one
        of `reference` (..., Da), so that means and differences of both are meaningful.
        """
        aligned = np.array(actions, np.float64)
        for start in self.quaternions:
            mine, theirs = aligned[..., start : start + 4], reference[..., start : start + 4]
            mine *= np.where((mine * theirs).sum(-1, keepdims=True) < 0.0, -1.0, 1.0)
        return aligned

    def count_degenerate(self, chunk: NDArray[np.floating[Any]]) -> int:
        """Number of rotations in `chunk` (Ta, Da) that `clamp` replaces by the previous one."""
        parts = [np.asarray(chunk[:, start:end], np.float64) for start, end in self._rotation_bounds()]
        return sum(int((~self._is_rotation(part)).sum()) for part in parts)

    @staticmethod
    def _is_rotation(rotations: Array) -> NDArray[np.bool_]:
        """Which of the rotation-6d (n, 6) or quaternions (n, 4) define a rotation; bool (n,)."""
        if rotations.shape[1] == 6:
            return is_rotation(rotations)
        return np.asarray(np.linalg.norm(rotations, axis=1) >= MIN_ROW_NORM)

    def neutral_action(self) -> Array:
        """An action (Da,) that may precede a chunk where the robot's is not known: zeros within the limits, with the
        identity as rotation.
        """
        action = np.clip(np.zeros(self.dim), self.low, self.high)
        for start in self.rotations:
            action[start : start + 6] = IDENTITY
        for start in self.quaternions:
            action[start : start + 4] = 0.5
        return action

    def hold_action(self, last_action: Array) -> Array:
        """The action (Da,) that stops after `last_action`: no motion, the same goals; grippers are unchanged."""
        return np.where(np.array(self.kinds) == MOTION, self._no_motion(), last_action)

    def _no_motion(self) -> Array:
        """0 (Da,), with the identity as rotation."""
        action = np.zeros(self.dim)
        for start in self.rotations:
            action[start : start + 6] = IDENTITY
        action[list(self.real_parts)] = 1.0
        return action

    def initial_action(self, start: NDArray[np.floating[Any]] | None) -> Array:
        """The action (Da,) to hold before the first chunk: `start`, by default no motion where all values are motions.

        ActionError if `start` is missing for actions that are goals, or invalid.
        """
        if start is not None:
            return self.validate_action(start, "start")
        if self.needs_start:
            raise ActionError("actions that are goals need a pose to hold before the first chunk.", self._start_hint())
        return self._no_motion()

    def validate_action(self, action: NDArray[np.floating[Any]], name: str) -> Array:
        """`action` (Da,) as float64; ActionError that begins with `name` if it is not an action of this kind."""
        try:
            values = np.array(action, np.float64)
        except (ValueError, TypeError):
            raise ActionError(
                f"{name} = {action!r} is not an action ({self.dim} values).", self._start_hint()
            ) from None
        is_valid = values.shape == (self.dim,) and np.isfinite(values).all()
        if not is_valid or not all(self._is_rotation(values[None, a:b]).all() for a, b in self._rotation_bounds()):
            raise ActionError(f"{name} = {values.tolist()} is not an action ({self.dim} values).", self._start_hint())
        return values

    def _start_hint(self) -> str:
        if not self.needs_start:
            return ""
        rotations = f", of which {self.rotations[0]} to {self.rotations[0] + 5} are a rotation-6d" * bool(
            self.rotations
        )
        return f"Give where the robot is, as an action: {self.dim} values{rotations}; 0 leaves a gripper unchanged."


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


def _normalize_quaternions(quaternions: Array) -> Array:
    return quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)
