"""Checks that the end effector of a recording without states moves as its actions say.

Values in another order, with another sign or of another scale can be plausible by themselves, but not together with the
motion. In recordings of robosuite the correlation of each axis is 0.3 to 0.95, or that with any other axis is as weak;
a step covers 0.1 to 0.3 of the offset that its action commands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DataError

Floats = NDArray[np.floating[Any]]

MIN_STEPS = 50
MIN_OFFSET = 0.02  # root mean square; below, correlations are noise
MIN_CORRELATION = 0.25
MAX_GAIN = 1.5
LAGS = range(4)  # [steps] that the motion may follow the actions
MAX_TESTED_LAG = 8
MIN_LAG_CORRELATION = 0.4
MIN_LAG_DIFFERENCE = 0.05  # of the correlation
MAX_OPENING_CORRELATION = -0.1
DELTA_RANGE = "Delta actions are in [-1, 1], where 1 stands for 0.05 m or 0.5 rad."


def correlation(a: Floats, b: Floats) -> float:
    """Correlation of two arrays of one shape, over all values around the mean of their column; 0 if one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return float((a * b).sum() / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-12))


def check_motion(kind: str, commands: Floats, motion: Floats, location: str, order_advice: str) -> None:
    """DataError unless the end effector moves as commanded.

    `commands` (n, 3) and `motion` (n, 3) of all steps are in one unit, along or about x, y and z; `kind` names them in
    the message ("position", "rotation"). Too few steps, or hardly any commands, prove nothing. `order_advice` says what
    to do about values in another order.
    """
    if len(commands) < MIN_STEPS:
        return
    for i, axis in enumerate("xyz"):
        if _root_mean_square(commands[:, i]) < MIN_OFFSET:
            continue
        fits = [correlation(commands[:, i], motion[:, j]) for j in range(3)]
        best = int(np.argmax(np.abs(fits)))
        is_other = (fits[i] < 0.1 and abs(fits[best]) > 0.4) or (fits[i] < 0.75 * abs(fits[best]) > 0.45)
        if is_other:
            sign = "-" if fits[best] < 0 else ""
            raise DataError(
                f"{location}: its actions of {kind} {axis} fit the motion of {sign}{'xyz'[best]} (correlation "
                f"{abs(fits[best]):.2f}), not of {axis} ({fits[i]:.2f}): values are in another order or have another "
                "sign.",
                order_advice,
            )
    if max(_root_mean_square(commands), _root_mean_square(motion)) < MIN_OFFSET:
        return
    gain = float((commands * motion).sum() / max((commands**2).sum(), 1e-12))
    if gain > MAX_GAIN:
        raise DataError(
            f"{location}: the {kind} changes by {gain:.1f} times what its actions say: they have another scale.",
            DELTA_RANGE,
        )
    fit = correlation(commands, motion)
    if kind == "position" and fit < MIN_CORRELATION:
        raise DataError(
            f"{location}: the position does not change as its actions say (correlation {fit:.2f}): they have another "
            "meaning, or belong to other steps.",
            f"{order_advice} {DELTA_RANGE}",
        )


def check_lag(episodes: list[tuple[Floats, Floats]], location: str) -> None:
    """DataError if the end effector moves before its actions, or many steps after them.

    Of each episode, the commanded and the actual motion of every step, (n, 3) each. In recordings of robosuite the
    motion follows delta actions by 0 or 1 steps, and goals by 2.
    """
    if sum(len(commands) for commands, _ in episodes) < MIN_STEPS:
        return
    fits = {}
    for lag in range(-MAX_TESTED_LAG, MAX_TESTED_LAG + 1):
        pairs = [_shift(commands, motion, lag) for commands, motion in episodes if len(commands) > MAX_TESTED_LAG]
        fits[lag] = correlation(*(np.concatenate(arrays) for arrays in zip(*pairs, strict=True))) if pairs else 0.0
    best = max(fits, key=lambda lag: fits[lag])
    if (
        best not in LAGS
        and fits[best] > MIN_LAG_CORRELATION
        and fits[best] > max(fits[lag] for lag in LAGS) + MIN_LAG_DIFFERENCE
    ):
        when = f"{-best} steps before" if best < 0 else f"{best} steps after"
        raise DataError(
            f"{location}: the end effector moves {when} its actions (correlation {fits[best]:.2f}, {fits[0]:.2f} "
            "without the shift): actions and observations belong to other steps.",
            "Shift the actions, so that each is the one that was executed after its observation.",
        )


def _shift(commands: Floats, motion: Floats, lag: int) -> tuple[Floats, Floats]:
    """The commands and the motion `lag` steps after them."""
    n = len(commands)
    return (commands[: n - lag], motion[lag:]) if lag >= 0 else (commands[-lag:], motion[: n + lag])


def check_gripper_direction(commands: Floats, closing: Floats, location: str) -> None:
    """DataError if the gripper opens when its actions close it.

    `commands` (n,) of all steps, 1 closes; `closing` (n,) is by how much the gap between the fingers shrinks [m]. In
    recordings of robosuite the correlation is 0.2 to 0.6, since the gripper is still most of the time.
    """
    fit = correlation(commands, closing)
    if len(commands) >= MIN_STEPS and fit < MAX_OPENING_CORRELATION:
        raise DataError(
            f"{location}: the gripper opens when its actions close it (correlation {fit:.2f}): the gripper value has "
            "another sign.",
            "Write -1 to open and 1 to close.",
        )


def _root_mean_square(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))
