"""Verifies that absolute actions reach their goals in the installed robosuite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import SimulatorError
from ddp_cli.robots import position_slices
from ddp_cli.rotation import matrix_from_6d, rotation_angle
from ddp_cli.schema import ActionPart, action_slices

Array = NDArray[np.float64]

OFFSET = np.array([0.03, 0.0, -0.04])  # [m], of the goals
N_STEPS = 15
MAX_POSITION_ERROR, MAX_ROTATION_ERROR = 0.01, 0.1  # [m], [rad]


def verify_absolute_actions(
    parts: Sequence[ActionPart], idle_action: Callable[[], Array], step: Callable[[Array], object]
) -> None:
    """Command poses 5 cm away and check that the end effectors reach them; SimulatorError if one does not.

    `parts` are those of absolute actions (Da,). `idle_action()` holds the current poses; `step(action)` executes one.

    A silent change of conventions between versions of robosuite would give 0% success without an error.
    """
    slices = list(zip(parts, action_slices(parts), strict=True))
    positions = position_slices(parts)
    rotations = [values for part, values in slices if part.rotation == "rotation-6d"]
    goal = idle_action()
    for values in positions:
        goal[values] += OFFSET
    for part, values in slices:
        if part.gripper:
            goal[values] = -1.0
    for _ in range(N_STEPS):
        step(goal)
    reached = idle_action()
    position_error = max(float(np.linalg.norm(reached[x] - goal[x])) for x in positions)
    rotation_error = max(float(rotation_angle(matrix_from_6d(reached[x]), matrix_from_6d(goal[x]))) for x in rotations)
    if position_error > MAX_POSITION_ERROR or rotation_error > MAX_ROTATION_ERROR:
        raise SimulatorError(
            f"absolute actions do not work: after a command to move by 5 cm, the end effector is "
            f"{position_error * 100:.1f} cm and {rotation_error:.2f} rad from its goal.",
            "Run `ddp doctor`: robosuite 1.5.2 is expected.",
        )
