"""Checks that the end effector of a recording without states moves as its actions say.

Values in another order, with another sign or of another scale can be plausible by themselves, but not together with the
motion. In recordings of robosuite the correlation of each axis is 0.3 to 0.95, or that with any other axis is as weak;
a step covers 0.1 to 0.3 of the offset that its action commands.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DataError

Floats = NDArray[np.floating[Any]]

MIN_STEPS = 50  # of all episodes
MIN_STEPS_PER_AXIS = 300
MAX_BETTER_FIT = {"position": 0.05, "rotation": 0.45}
"""By how much the correlation may be higher in another order: by 0.005 in 520 single demonstrations of robosuite, and
by 0.38 for rotations, which hardly move in some of them."""
MIN_STEPS_OF_EPISODE = 20
MAX_OPPOSED_CORRELATION = -0.1  # of an episode
MIN_OFFSET = 0.02  # root mean square; below, correlations are noise
MIN_CORRELATION = 0.25
MAX_GAIN = 1.5
LAGS = range(4)  # [steps] that the motion may follow the actions
MAX_TESTED_LAG = 8
MIN_LAG_CORRELATION = 0.4
MIN_LAG_DIFFERENCE = 0.05  # of the correlation
MAX_OPENING_CORRELATION = -0.1
MIN_CLOSING = 0.01  # [m], total motion of the fingers in an episode; below, the direction is noise
SKIP_ADVICE = "--check 0 converts it without this check."
DELTA_RANGE = "Delta actions are in [-1, 1], where 1 stands for 0.05 m or 0.5 rad."


def correlation(a: Floats, b: Floats) -> float:
    """Correlation of two arrays of one shape, over all values around the mean of their column; 0 if one is constant or
    empty.
    """
    if not len(a):
        return 0.0
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
    check_axes(kind, commands, motion, location, order_advice)
    if max(_root_mean_square(commands), _root_mean_square(motion)) < MIN_OFFSET:
        return
    gain = float((commands * motion).sum() / max((commands**2).sum(), 1e-12))
    if gain > MAX_GAIN:
        raise DataError(
            f"{location}: the {kind} changes by {gain:.1f} times what its actions say: they have another scale.",
            f"{DELTA_RANGE} {SKIP_ADVICE}",
        )
    fit = correlation(commands, motion)
    if kind == "position" and fit < MIN_CORRELATION:
        raise DataError(
            f"{location}: the position does not change as its actions say (correlation {fit:.2f}): they have another "
            "meaning, or belong to other steps.",
            f"{order_advice} {DELTA_RANGE} {SKIP_ADVICE}",
        )


def check_axes(kind: str, commands: Floats, motion: Floats, location: str, order_advice: str) -> None:
    """DataError if the commands fit the motion better in another order of the axes, or with other signs.

    The correlation over all axes of a correct order is the best one, even of a single demonstration, but hardly depends
    on an axis with little motion. Axis by axis, a single demonstration proves nothing.
    """
    order, fit, best_fit = _best_order(commands, motion)
    wrong = [i for i in range(3) if order[i] != (i, 1)]
    if not wrong or best_fit - fit < MAX_BETTER_FIT[kind]:
        wrong = []
        order = [_best_axis(commands[:, i], motion) for i in range(3)]
        if len(commands) >= MIN_STEPS_PER_AXIS:
            wrong = [i for i in range(3) if _fits_another_axis(commands[:, i], motion, i)]
    if not wrong:
        return
    axis, (other, sign) = wrong[0], order[wrong[0]]
    fit, best_fit = correlation(commands[:, axis], motion[:, axis]), correlation(commands[:, axis], motion[:, other])
    raise DataError(
        f"{location}: its actions of {kind} {'xyz'[axis]} fit the motion of {'-' if sign < 0 else ''}{'xyz'[other]} "
        f"(correlation {abs(best_fit):.2f}), not of {'xyz'[axis]} ({fit:.2f}): values are in another order or have "
        "another sign.",
        f"{order_advice} {SKIP_ADVICE}",
    )


def _best_order(commands: Floats, motion: Floats) -> tuple[list[tuple[int, int]], float, float]:
    """For each axis of the commands the axis and sign of the motion that fit best together; the correlation over all
    axes as they are, and in this order.
    """
    a, b = commands - commands.mean(axis=0), motion - motion.mean(axis=0)
    products = a.T @ b / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-12)
    order = max(itertools.permutations(range(3)), key=lambda axes: np.abs(products[range(3), axes]).sum())
    signs = np.where(products[range(3), order] < 0, -1, 1).tolist()
    return (
        list(zip(order, signs, strict=True)),
        float(np.trace(products)),
        float(np.abs(products[range(3), order]).sum()),
    )


def _best_axis(command: Floats, motion: Floats) -> tuple[int, int]:
    fits = [correlation(command, motion[:, j]) for j in range(3)]
    best = int(np.argmax(np.abs(fits)))
    return best, -1 if fits[best] < 0 else 1


def _fits_another_axis(command: Floats, motion: Floats, axis: int) -> bool:
    best, _ = _best_axis(command, motion)
    fit, best_fit = correlation(command, motion[:, axis]), abs(correlation(command, motion[:, best]))
    is_other = (fit < 0.1 and best_fit > 0.4) or (fit < 0.75 * best_fit > 0.45)
    return is_other and _root_mean_square(command) >= MIN_OFFSET


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
            f"{location}: the motion {when} the actions fits them best (correlation {fits[best]:.2f}, {fits[0]:.2f} "
            "without a shift), expected 0 to 3 steps after: actions and observations belong to other steps.",
            f"Shift the actions, so that each is the one that was executed after its observation. {SKIP_ADVICE}",
        )


def _shift(commands: Floats, motion: Floats, lag: int) -> tuple[Floats, Floats]:
    """The commands and the motion `lag` steps after them."""
    n = len(commands)
    return (commands[: n - lag], motion[lag:]) if lag >= 0 else (commands[-lag:], motion[: n + lag])


def check_episode(steps: tuple[Floats, Floats], grips: tuple[Floats, Floats], location: str) -> None:
    """DataError if an episode moves against its actions, or if its gripper does.

    `steps` are the commanded and the actual motion of every step, (n, 3) each; `grips` as in `check_gripper_direction`.
    """
    commands, motion = steps
    if len(commands) < MIN_STEPS_OF_EPISODE:
        return
    fit = correlation(commands, motion)
    if fit < MAX_OPPOSED_CORRELATION and _root_mean_square(commands) >= MIN_OFFSET:
        raise DataError(
            f"{location}: the end effector moves against its actions (correlation {fit:.2f}): they have another sign, "
            "or belong to another episode.",
            f"Leave it out, or correct its actions. {SKIP_ADVICE}",
        )
    if np.abs(grips[1]).sum() >= MIN_CLOSING:
        check_gripper_direction(*grips, location)


def check_gripper_direction(commands: Floats, closing: Floats, location: str) -> None:
    """DataError if the gripper opens when its actions close it.

    `commands` (n,) of all steps, 1 closes; `closing` (n,) is by how much the gap between the fingers shrinks [m]. In
    recordings of robosuite the correlation is 0.2 to 0.6, since the gripper is still most of the time.
    """
    fit = correlation(commands, closing)
    if len(commands) < MIN_STEPS_OF_EPISODE or fit >= MAX_OPENING_CORRELATION:
        return
    shifted = [correlation(*_shift(commands, closing, lag)) for lag in range(-MAX_TESTED_LAG, MAX_TESTED_LAG + 1)]
    if max(shifted) < -fit:  # otherwise the actions belong to other steps, see `check_lag`
        raise DataError(
            f"{location}: the gripper opens when its actions close it (correlation {fit:.2f}): the gripper value has "
            "another sign.",
            f"Write -1 to open and 1 to close. {SKIP_ADVICE}",
        )


def _root_mean_square(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))
