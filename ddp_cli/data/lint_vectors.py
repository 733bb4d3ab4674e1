"""What in the values of vectors and actions would hurt a policy: jumps, outliers, repeated rows, limits, switches.

Shapes: n steps of an episode. Most thresholds relate to the range of a dimension in the dataset, because units are not
known; each is chosen so that recordings by people and by scripts pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lint_source import DEFAULT_RATE, Finding, Floats, Series, describe_place, find_runs

MIN_STEPS = 100  # of a dataset, for statements about distributions
JUMP_RANGE = 0.3  # of the range, in one step. Joints that people move fast make 0.2
JUMP_FACTOR = 12.0  # times the 98th percentile of steps that move: a falling object makes 11
JUMP_CONTRAST = 8.0  # times the steps around it: an object that is hit keeps moving
OUTLIER_FACTOR = 5.0  # times the width of the middle 98%; heavy tails of velocities make 1.5
RESTS = 0.05  # a dimension whose middle 50% are less of its middle 98% rests in most steps,
RESTING_FACTOR = 30.0  # and its few motions are no outliers: objects that are touched make 12
REPEAT_MOTION = 0.01  # of the range per step, before and after rows that repeat: a joint that stops does so slowly
REPEAT_RUN = 5  # steps; what rests longer, rests
REPEAT_SHARE = 0.1  # of the steps that move: an object may rest between two pushes, a slow sensor repeats 20% or 50%
MIN_REPEATS = 3  # in an episode
FROZEN_FACTOR = 3.0  # times the 98th percentile of motions: where a sensor that was stuck catches up
SATURATED = 0.05  # of all steps
LEVEL = 0.1  # of the range; as near to its minimum or maximum, a gripper is open or closed
LEVEL_SHARE = 0.8  # of the steps of a gripper that are at one of both
MIN_LEVEL_SHARE = 0.1  # of the steps at each of both: else it is a joint that rests at one
SWITCH = 0.25  # of the range: a gripper that is not as near to one end is on its way
GRIPPER_WORDS = ("grip", "finger", "thumb", "hand", "jaw", "claw")
CHATTER = 0.2  # [s]; a gripper that is switched on purpose stays longer


def lint_vectors(series: list[Series], names: list[str], rate: float | None) -> Iterator[Finding]:
    """Findings on the values of the episodes `names`, which `series` hold; the action is the last of them."""
    action = series[-1]
    for one in series:
        yield from find_constants(one)
        if len(one.rows) >= MIN_STEPS:
            yield from find_outliers(one, names)
    for one in series[:-1]:
        if len(one.rows) >= MIN_STEPS:
            yield from find_jumps(one, names)
        yield from find_repeated_rows(one, action, names)
    if len(action.rows) >= MIN_STEPS:
        yield from find_saturation(action)
    yield from find_chatter(action, names, rate)


def find_constants(series: Series) -> Iterator[Finding]:
    """Dimensions that never change."""
    columns = np.flatnonzero(np.ptp(series.rows, axis=0) == 0)
    if len(columns) == len(series.dimensions) > 1:
        yield Finding("constant", f"no value of {series.key} ever changes", [])
    elif len(columns):
        yield Finding("constant", f"{', '.join(series.dimensions[c] for c in columns)} never changes", [])


def find_outliers(series: Series, names: list[str]) -> Iterator[Finding]:
    """Values far outside of the rest of their dimension, which squeeze the rest when they are normalized."""
    low, first_quarter, last_quarter, high = np.percentile(series.rows, [1, 25, 75, 99], axis=0)
    rests = last_quarter - first_quarter < RESTS * (high - low)
    distance = np.where(rests, RESTING_FACTOR, OUTLIER_FACTOR) * (high - low)
    distance[series.is_discrete | (high == low)] = np.inf
    is_out = [(e < low - distance) | (e > high + distance) for e in series.episodes]
    places = _places([flags.any(axis=1) for flags in is_out])
    if places:
        i, step = places[0]
        c = int(np.flatnonzero(is_out[i][step])[0])
        others = np.flatnonzero(np.logical_or.reduce([flags.any(axis=0) for flags in is_out]))
        also = "".join(f", {series.dimensions[k]}" for k in others if k != c)
        message = (
            f"{series.dimensions[c]} is {low[c]:.3g} to {high[c]:.3g} in 98% of all steps, but "
            f"{series.episodes[i][step, c]:.3g} in {describe_place(step, names[i])}{_more(len(places))}"
        )
        message += f" (with {also[2:]})" if also else ""
        yield Finding("outlier", message, [names[i] for i in sorted({i for i, _ in places})])


def _places(flags: list[NDArray[np.bool_]]) -> list[tuple[int, int]]:
    """Episode and step of every true flag."""
    return [(i, step) for i, flag in enumerate(flags) for step in np.flatnonzero(flag).tolist()]


def _more(count: int) -> str:
    return f", and in {count - 1} more steps" if count > 1 else ""


def find_jumps(series: Series, names: list[str]) -> Iterator[Finding]:
    """Changes between two steps that no motion makes."""
    steps = [np.abs(np.diff(episode, axis=0)) for episode in series.episodes]
    all_steps = np.concatenate(steps)
    usual = np.array([np.percentile(c[c > 0], 98) if c.any() else 0 for c in all_steps.T])
    threshold = np.maximum(JUMP_FACTOR * usual, JUMP_RANGE * series.scale)
    is_jump = [(s > np.maximum(threshold, JUMP_CONTRAST * _nearby(s))) & ~series.is_discrete for s in steps]
    places = _places([flags.any(axis=1) for flags in is_jump])
    if not places:
        return
    i, step = places[0]
    columns = np.flatnonzero(is_jump[i][step])
    before, after = series.episodes[i][step : step + 2].astype(np.float64)
    changes = ", ".join(f"{series.dimensions[c]} {before[c]:.3g} -> {after[c]:.3g}" for c in columns[:4])
    message = (
        f"{changes} in {describe_place(step + 1, names[i])}{_more(len(places))}{_explain_jump(before, after, columns)}"
    )
    yield Finding("jump", message, [names[i] for i in sorted({i for i, _ in places})])


def _nearby(steps: Floats) -> Floats:
    """The median of each of `steps` (n, width) and the two before and after it: a single spike makes two large ones."""
    if not len(steps):
        return steps
    padded = np.pad(steps, ((2, 2), (0, 0)), mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 5, axis=0), axis=-1))


def _explain_jump(before: NDArray[Any], after: NDArray[Any], columns: NDArray[Any]) -> str:
    """What a jump from `before` to `after` (width,) is, if it is of a known kind."""
    for first in range(len(before) - 3):
        q, r = before[first : first + 4], after[first : first + 4]
        if abs(np.linalg.norm(q) - 1) < 0.01 and np.abs(q + r).max() < 0.1 and {*range(first, first + 4)} & {*columns}:
            return ": a quaternion that changes its sign"
    size = np.abs(after - before)[columns]
    wraps = any((abs(size / turn - 1) < 0.05).any() for turn in (2 * np.pi, 360.0))
    return ": an angle that wraps" if wraps else ""


def find_repeated_rows(series: Series, action: Series, names: list[str]) -> Iterator[Finding]:
    """Rows that are exactly those before them, between rows that move, while the action moves."""
    moves = np.concatenate(series.motions)
    catch_up = max(REPEAT_MOTION, FROZEN_FACTOR * float(np.percentile(moves[moves > 0], 98))) if moves.any() else np.inf
    repeated: dict[int, list[tuple[int, int]]] = {}
    for i, motion in enumerate(series.motions):
        inner = [(begin, end) for begin, end in find_runs(motion == 0) if begin > 0 and end < len(motion)]
        inner = [(b, e) for b, e in inner if action.motions[i][b - 1 : e + 1].max() > REPEAT_MOTION]
        short = [
            (begin, end)
            for begin, end in inner
            if end - begin <= REPEAT_RUN and min(motion[begin - 1], motion[end]) > REPEAT_MOTION
        ]
        is_often = sum(end - begin for begin, end in short) >= REPEAT_SHARE * (motion > REPEAT_MOTION).sum()
        frozen = [(begin, end) for begin, end in inner if end - begin > REPEAT_RUN and motion[end] > catch_up]
        if frozen or (is_often and len(short) >= MIN_REPEATS):
            repeated[i] = sorted(frozen + short * is_often)
    if repeated and not series.is_discrete.all():
        i, runs = next(iter(repeated.items()))
        count = sum(end - begin for runs in repeated.values() for begin, end in runs)
        message = f"{count} rows of {series.key} repeat the row before while the action moves"
        message += f", first in {describe_place(runs[0][0] + 1, names[i])}"
        yield Finding("repeated", message, [names[i] for i in repeated])


def find_saturation(action: Series) -> Iterator[Finding]:
    """Dimensions of the action that often are exactly at their minimum or maximum."""
    for c in np.flatnonzero(~action.is_discrete & ~find_grippers(action)):
        column = action.rows[:, c]
        for word, limit in (("minimum", column.min()), ("maximum", column.max())):
            share = float((column == limit).mean())
            if share > SATURATED:
                message = f"{action.dimensions[c]} is at its {word}, {limit:.3g}, in {share:.0%} of the steps"
                yield Finding("saturated", message, [])


def find_grippers(series: Series) -> NDArray[np.bool_]:
    """Which dimensions (width,) open and close something, by their names or values: open or closed most of the time."""
    low, high = np.percentile(series.rows, [0.5, 99.5], axis=0)
    margin = LEVEL * (high - low)
    at_low, at_high = (series.rows <= low + margin).mean(axis=0), (series.rows >= high - margin).mean(axis=0)
    has_levels = (at_low + at_high > LEVEL_SHARE) & (np.minimum(at_low, at_high) > MIN_LEVEL_SHARE) & (high > low)
    is_named = [any(word in name.lower() for word in GRIPPER_WORDS) for name in series.dimensions]
    return np.asarray(has_levels | is_named)


def find_chatter(action: Series, names: list[str], rate: float | None) -> Iterator[Finding]:
    """Grippers that switch, and back within a few steps."""
    longest = max(2, round(CHATTER * (rate or DEFAULT_RATE)))
    low, high = np.percentile(action.rows, [0.5, 99.5], axis=0)
    for c in np.flatnonzero(find_grippers(action) & (high > low)):
        places: list[tuple[int, int]] = []
        count = 0
        for i, episode in enumerate(action.episodes):
            switches = _switches((episode[:, c] - low[c]) / (high[c] - low[c]))
            short = switches[:-1][np.diff(switches) <= longest]
            if len(short):
                places.append((i, int(short[0])))
                count += len(short)
        if places:
            i, step = places[0]
            often = f" (and {count - 1} more times)" if count > 1 else ""
            where = describe_place(step, names[i])
            message = f"{action.dimensions[c]} switches in {where} and back within {longest} steps{often}"
            yield Finding("chatter", message, [names[i] for i, _ in places])


def _switches(values: Floats) -> NDArray[np.intp]:
    """The steps in which `values` (n,), 0 is open and 1 closed, get to the other end, of those near to one."""
    steps = np.flatnonzero((values < SWITCH) | (values > 1 - SWITCH))
    return steps[1:][np.diff(values[steps] > 0.5)]
