"""Properties that every correct recording has, whoever recorded it, and that cost nothing to check.

Shapes: n steps of a demo.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DataError

Floats = NDArray[np.floating[Any]]

TIME_TOLERANCE = 0.1  # of the control period
QUATERNION_TOLERANCE = 1e-2  # of the norm; float16 has 3 digits
MIN_SIMILARITY = 0.5  # of intended and executed translations; 0.9 and more in demonstrations of `ddp collect`
CLIP_TOLERANCE = 1e-3
ABSOLUTE_SHARE = 0.95  # of steps with a value above 1
MAX_REACH = 3.0  # [m], from the origin of the world
MAX_GOAL_STEP = 0.15  # [m], between the goals of two steps: three times the largest delta of a goal


def check_time(time: Floats, location: str, rate: float) -> None:
    """DataError unless the recorded `time` (n,) [s] advances by one control period (1 / `rate`) per step.

    Jumps mean that frames were cut out, or that several episodes were joined. A constant time was not recorded.
    """
    steps, period = np.diff(time), 1.0 / rate
    if not steps.any():
        return
    jumps = np.flatnonzero(np.abs(steps - period) > TIME_TOLERANCE * period)
    if not len(jumps):
        return
    first = int(jumps[0])
    cause = "several episodes in one" if steps[first] < 0 else "frames were cut out"
    if len(jumps) > len(steps) / 2:
        cause = "it was recorded at another rate, or only some of the frames were kept"
    raise DataError(
        f"{location}: the time changes by {steps[first]:g} s after step {first}, expected {period:g} s "
        f"({len(jumps)} of {len(steps)} steps): {cause}.",
        "Record this demo again, or split it where the time jumps.",
    )


def check_intended(intended: Floats, actions: Floats, location: str) -> None:
    """DataError unless the `intended` actions (n, 7) are those that were disturbed to the executed `actions` (n, 7):
    what a policy learns is not replayed, so it is compared with what was executed.
    """
    a, b = intended[:, :3].ravel(), actions[:, :3].ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not np.any(b):
        return
    similarity = float(a @ b) / norms if norms else 0.0
    if similarity < MIN_SIMILARITY:
        raise DataError(
            f"{location}: its intended actions do not resemble the executed ones (cosine similarity {similarity:.2f}, "
            f"expected at least {MIN_SIMILARITY:g}).",
            "Remove `intended` from this demo to imitate its executed actions.",
        )


def check_quaternions(quaternions: Floats, location: str) -> None:
    """DataError unless all `quaternions` (n, 4) have norm 1."""
    norms = np.linalg.norm(quaternions.astype(np.float64), axis=1)
    worst = int(np.argmax(np.abs(norms - 1)))
    if abs(norms[worst] - 1) > QUATERNION_TOLERANCE:
        raise DataError(
            f"{location}: the quaternion of step {worst} has norm {norms[worst]:.3g}, expected 1.",
            "The values may be in another order than x, y, z, w, or not a quaternion.",
        )


def share_of_clipped_steps(actions: Floats) -> float:
    """Share of the steps of delta `actions` (n, 7) in which a value is outside of [-1, 1] and would be clipped."""
    return float((np.abs(actions) > 1 + CLIP_TOLERANCE).any(axis=1).mean()) if len(actions) else 0.0


def looks_absolute(actions: Floats) -> bool:
    """Whether the `actions` (n, 7) of a demo can only be absolute goal poses: position, axis-angle, gripper.

    Delta actions are at most 1, and jump. The axis-angle of a gripper that points down has a norm of pi, and goals
    move slowly within the reach of the arm.
    """
    positions, rotations = actions[:, :3], actions[:, 3:6]
    if np.abs(positions).max() > MAX_REACH or np.linalg.norm(rotations, axis=1).max() > np.pi + CLIP_TOLERANCE:
        return False
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    is_smooth = len(steps) == 0 or float(np.quantile(steps, 0.95)) <= MAX_GOAL_STEP
    return is_smooth and share_of_clipped_steps(actions[:, :6]) >= ABSOLUTE_SHARE
