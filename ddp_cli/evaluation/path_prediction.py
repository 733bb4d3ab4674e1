"""Where a chunk of actions takes the hand, without running it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ddp_cli.tasks import ACTION_DIM, CONTROL_HZ, DELTA_METRES

Array = NDArray[np.float64]

STIFFNESS = 150.0
"""Of robosuite's controller of the hand [1/s^2]: its acceleration per metre to the goal, critically damped."""


def predicted_path(hand: Array, velocity: Array, chunk: Array, base: Array) -> Array:
    """Positions [m] (Ta + 1, 3) of a hand that is at `hand` [m] and moves at `velocity` [m/s], now and after
    each action of `chunk` (Ta, 7 delta or 10 absolute); world frame, as is everything but delta actions,
    which are given in `base` (3, 3).

    A goal is not where the hand gets to: in one control period it covers a quarter of the way to a new one, and
    a delta action counts from where the hand then is. Adding up the deltas would draw a path four times too long.
    So this integrates what the controller imposes, x'' = k (goal - x) - 2 sqrt(k) x', exactly in each period.
    """
    period, rate = 1 / CONTROL_HZ, math.sqrt(STIFFNESS)
    decay = math.exp(-rate * period)
    positions = [hand]
    for action in chunk:
        delta = base @ action[:3] * DELTA_METRES
        off = -delta if len(action) == ACTION_DIM else hand - action[:3]  # from the goal to the hand
        pull = velocity + rate * off
        hand = hand - off + (off + pull * period) * decay
        velocity = (velocity - rate * pull * period) * decay
        positions.append(hand)
    return np.stack(positions)
