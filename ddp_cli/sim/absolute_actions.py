"""Verifies that absolute actions reach their goals in the installed robosuite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import SimulatorError
from ddp_cli.rotation import matrix_to_6d, rotation_angle

Array = NDArray[np.float64]

N_STEPS = 15
MAX_POSITION_ERROR, MAX_ROTATION_ERROR = 0.01, 0.1  # [m], [rad]


def verify_absolute_actions(eef_pose: Callable[[], tuple[Array, Array]], step: Callable[[Array], object]) -> None:
    """Command a pose 5 cm away and check that the end effector reaches it; SimulatorError if it does not.

    `eef_pose()` is its current position [m] (3,) and orientation (3, 3); `step(action)` executes an action (10,).

    A silent change of conventions between versions of robosuite would give 0% success without an error.
    """
    start, rotation = eef_pose()
    goal = start + np.array([0.03, 0.0, -0.04])
    for _ in range(N_STEPS):
        step(np.concatenate([goal, matrix_to_6d(rotation), [-1.0]]))
    position_error = np.linalg.norm(eef_pose()[0] - goal)
    rotation_error = rotation_angle(eef_pose()[1], rotation)
    if position_error > MAX_POSITION_ERROR or rotation_error > MAX_ROTATION_ERROR:
        raise SimulatorError(
            f"absolute actions do not work: after a command to move by 5 cm, the end effector is "
            f"{position_error * 100:.1f} cm and {rotation_error:.2f} rad from its goal.",
            "Run `ddp doctor`: robosuite 1.5.2 is expected.",
        )
