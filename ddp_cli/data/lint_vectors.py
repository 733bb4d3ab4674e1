"""What in the values of vectors and actions would hurt a policy: jumps, outliers, repeated rows, limits, switches.

Shapes: n steps of an episode. Most thresholds relate to the range of a dimension in the dataset, because units are not
known; each is chosen so that recordings by people and by scripts pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lint_source import DEFAULT_RATE, Finding, Floats, Series, describe_place, find_runs

MIN_STEPS = 100  # of a dataset, for statements about distributions
JUMP_RANGE = 0.3  # of the range, in one step. Joints that people move fast make 0.2
JUMP_FACTOR = 12.0  # times the 98th percentile of steps that move: a falling object makes 11
JUMP_CONTRAST = 8.0  # times the steps around it: an object that is hit keeps moving
TURN_TOLERANCE = 0.05  # an angle that wraps moves on by less
NORM_TOLERANCE = 0.02  # of the numbers of a quaternion, as recorded
FLIPPED = -0.5  # scalar product of two quaternions: they are within 120 degrees of each other, with opposite sign
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
        yield from find_jumps(one, names, is_action=one is action)
    for one in series[:-1]:
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


def find_jumps(series: Series, names: list[str], is_action: bool) -> Iterator[Finding]:
    """Changes between two steps that no motion makes. Those of unknown kind are looked for in observed vectors only:
    actions may change at once.
    """
    steps = [np.abs(np.diff(episode, axis=0)) for episode in series.episodes]
    flips = _find_flips(series)
    wraps = [_are_wraps(s, np.ptp(series.rows, axis=0)) & ~series.is_discrete for s in steps]
    kinds = {": a quaternion that changes its sign": flips, ": an angle that wraps": wraps}
    if not is_action and len(series.rows) >= MIN_STEPS:
        usual = np.array([np.percentile(c[c > 0], 98) if c.any() else 0 for c in np.concatenate(steps).T])
        threshold = np.maximum(JUMP_FACTOR * usual, JUMP_RANGE * series.scale)
        kinds[""] = [
            (s > np.maximum(threshold, JUMP_CONTRAST * _nearby(s))) & ~(series.is_discrete | flip | wrap)
            for s, flip, wrap in zip(steps, flips, wraps, strict=True)
        ]
    for explanation, is_jump in kinds.items():
        places = _places([flags.any(axis=1) for flags in is_jump])
        if places:
            i, step = places[0]
            before, after = series.episodes[i][step : step + 2]
            changes = ", ".join(
                f"{series.dimensions[c]} {before[c]:.3g} -> {after[c]:.3g}" for c in np.flatnonzero(is_jump[i][step])
            )
            message = f"{changes} in {describe_place(step + 1, names[i])}{_more(len(places))}{explanation}"
            yield Finding("jump", message, [names[i] for i in sorted({i for i, _ in places})])


def _are_wraps(steps: Floats, ranges: Floats) -> NDArray[np.bool_]:
    """Which `steps` (n, width) are a full turn, in radians or degrees, of a dimension that covers just that."""
    turns = (2 * np.pi, 360.0)
    flags = [(abs(steps / turn - 1) < TURN_TOLERANCE) & (ranges < (1 + TURN_TOLERANCE) * turn) for turn in turns]
    return np.asarray(flags[0] | flags[1])


def _find_flips(series: Series) -> list[NDArray[np.bool_]]:
    """Per episode the values (n - 1, width) of quaternions, four numbers of norm 1, that become their opposite."""
    flips = [np.zeros((len(episode) - 1, len(series.dimensions)), bool) for episode in series.episodes]
    for first in range(len(series.dimensions) - 3):
        columns = slice(first, first + 4)
        if np.abs(np.linalg.norm(series.rows[:, columns], axis=1) - 1).max() > NORM_TOLERANCE:
            continue
        for episode, flip in zip(series.episodes, flips, strict=True):
            before, after = episode[:-1, columns], episode[1:, columns]
            is_flip = ((before * after).sum(axis=1) < FLIPPED)[:, None]
            flip[:, columns] |= is_flip & (np.abs(after - before) > NORM_TOLERANCE)
    return flips


def _nearby(steps: Floats) -> Floats:
    """The median of each of `steps` (n, width) and the two before and after it: a single spike makes two large ones."""
    if not len(steps):
        return steps
    padded = np.pad(steps, ((2, 2), (0, 0)), mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 5, axis=0), axis=-1))


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
