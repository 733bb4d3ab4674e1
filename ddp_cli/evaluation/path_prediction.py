"""Prediction of the end-effector paths of an action chunk, without executing it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ddp_cli.robots import DELTA_METRES

Array = NDArray[np.float64]

STIFFNESS = 150.0
"""Position gain of robosuite's operational-space controller [1/s^2]: acceleration per metre of position error. The
controller is critically damped."""


def predict_path(position: Array, velocity: Array, commands: Array, frame: Array | None, period: float) -> Array:
    """End-effector positions [m] (Ta + 1, 3) of an arm: now, and after each of `commands` (Ta, 3).

    The end effector is at `position` [m] with `velocity` [m/s], in the world frame. With `frame` (3, 3), the commands
    are delta actions in it; without, goal positions [m] in the world frame. `period` is the control period [s].

    The end effector does not reach its goals: in a control period it covers a quarter of the distance to a new one, and
    a delta action starts from the pose reached so far. Summing the deltas would give a path four times too long. So
    this integrates the dynamics of the controller, x'' = k (goal - x) - 2 sqrt(k) x', exactly over each period.
    """
    rate = math.sqrt(STIFFNESS)
    decay = math.exp(-rate * period)
    positions = [position]
    for command in commands:
        # From the goal to the end effector.
        error = position - command if frame is None else -(frame @ command * DELTA_METRES)
        coefficient = velocity + rate * error  # error(t) = (error + coefficient * t) * exp(-rate * t)
        position = position - error + (error + coefficient * period) * decay
        velocity = (velocity - rate * coefficient * period) * decay
        positions.append(position)
    return np.stack(positions)
