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
HINT = (
    "If the values are in another order, say it in `names` of meta/info.json; delta actions are in [-1, 1], where 1 "
    "stands for 0.05 m or 0.5 rad."
)


def correlation(a: Floats, b: Floats) -> float:
    """Correlation of two arrays of one shape, over all values around the mean of their column; 0 if one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return float((a * b).sum() / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-12))


def check_motion(kind: str, commands: Floats, motion: Floats, location: str) -> None:
    """DataError unless the end effector moves as commanded.

    `commands` (n, 3) and `motion` (n, 3) of all steps are in one unit, along or about x, y and z; `kind` names them in
    the message ("position", "rotation"). Too few steps, or hardly any commands, prove nothing.
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
                HINT,
            )
    if max(_root_mean_square(commands), _root_mean_square(motion)) < MIN_OFFSET:
        return
    gain = float((commands * motion).sum() / max((commands**2).sum(), 1e-12))
    if gain > MAX_GAIN:
        raise DataError(
            f"{location}: the {kind} changes by {gain:.1f} times what its actions say: they have another scale.", HINT
        )
    fit = correlation(commands, motion)
    if kind == "position" and fit < MIN_CORRELATION:
        raise DataError(
            f"{location}: the position does not change as its actions say (correlation {fit:.2f}): they have another "
            "meaning, or belong to other steps.",
            HINT,
        )


def _root_mean_square(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))
