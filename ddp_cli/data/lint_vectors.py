"""What in the vectors and actions of a dataset would hurt a policy.

Shapes: n steps of an episode, N steps of all. A threshold relates to the range of a dimension in the dataset, because
units are not known; each is chosen so that recordings by people and by scripts pass.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lint_source import Finding, Floats, LintSource, Series

DEFAULT_RATE = 10.0  # [Hz], of recordings that do not state theirs: such are recorded at 10 to 50 Hz
STILL = 0.01  # of the range of each dimension, within a window: more than the noise of servos, less than a slow motion
WINDOW = 0.5  # [s]; a person who moves slowly needs it for 1% of the range
MIN_PAUSE = 1.0  # [s]; shorter ones belong to grasping and reversing
MIN_EDGE_PAUSE = 0.5  # [s] at the start and at the end, where nothing has to be waited for
MIN_STEPS = 100  # of a dataset, for statements about distributions
JUMP_RANGE = 0.3  # of the range, in one step. Joints that people move fast make 0.2
JUMP_FACTOR = 10.0  # times the 98th percentile of steps that move: closing fingers and contacts make 8
OUTLIER_FACTOR = 3.0  # times the width of the middle 98%; heavy tails of velocities make 1.5
REPEAT_MOTION = 0.01  # of the range per step, before and after rows that repeat: a joint that stops does so slowly
REPEAT_RUN = 5  # steps; what rests longer, rests
MIN_REPEATS = 3  # in an episode: an object may be pushed twice
NEAR = 0.01  # of the range; two motions of a person differ by more at some step
SATURATED = 0.05  # of all steps
LEVEL = 0.1  # of the range; as near to its minimum or maximum, a gripper is open or closed
LEVEL_SHARE = 0.8  # of the steps of a gripper that are at one of both
CHATTER = 0.2  # [s]; a gripper that is switched on purpose stays longer
SHORT, LONG = 1 / 3, 3.0  # of the median length


def lint_vectors(source: LintSource, series: list[Series], names: list[str]) -> Iterator[Finding]:
    """Findings on the episodes `names`, which `series` hold; the action is the last of them."""
    action = series[-1]
    yield from find_lengths(source)
    yield from find_pauses(series, names, source.rate)
    yield from find_duplicates(action, names)
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
    yield from find_chatter(action, names, source.rate)


def find_lengths(source: LintSource) -> Iterator[Finding]:
    """Episodes much shorter or longer than the median."""
    median = float(np.median(source.lengths))
    for word, is_odd in (
        ("shorter", [n < SHORT * median for n in source.lengths]),
        ("longer", [n > LONG * median for n in source.lengths]),
    ):
        odd = list(itertools.compress(range(len(is_odd)), is_odd))
        if odd:
            first = f"episode {source.episode_names[odd[0]]} has {source.lengths[odd[0]]} steps"
            message = f"{len(odd)} episodes are much {word} than the median of {median:g} steps: {first}"
            yield Finding("length", message, [source.episode_names[i] for i in odd])


def find_pauses(series: list[Series], names: list[str], rate: float | None) -> Iterator[Finding]:
    """Runs of steps in which neither a vector nor the action moves."""
    hertz = rate or DEFAULT_RATE
    window = max(2, round(WINDOW * hertz))
    least = {"start": max(2, round(MIN_EDGE_PAUSE * hertz)), "middle": max(2, round(MIN_PAUSE * hertz))}
    pauses: dict[str, list[tuple[int, int, int]]] = {"start": [], "middle": [], "end": []}
    moving = [one for one in series if np.ptp(one.rows, axis=0).any()]
    for i, name in enumerate(names):
        still = np.logical_and.reduce([_is_still(one.episodes[i] / one.scale, window) for one in moving])
        for begin, end in _runs(still) if moving else []:
            place = "start" if begin == 0 else "end" if end == len(still) else "middle"
            if end - begin >= least.get(place, least["start"]):
                pauses[place].append((i, begin, end - begin))
    words = {"start": "begin with a pause", "middle": "pause", "end": "end with a pause"}
    for place, found in pauses.items():
        if found:
            total = sum(length for *_, length in found)
            i, begin, longest = max(found, key=lambda pause: pause[2])
            episodes = sorted({pause[0] for pause in found})
            at = f"of {_steps(longest, rate)} from step {begin} of episode {names[i]}"
            message = f"{len(episodes)} of {len(names)} episodes {words[place]}: {_steps(total, rate)}, the longest {at}"
            yield Finding("pause" if place == "middle" else f"pause at {place}", message, [names[i] for i in episodes])


def _is_still(values: Floats, window: int) -> NDArray[np.bool_]:
    """The steps (n,) in a window of `window` steps within which no value changes by more than STILL."""
    still = np.zeros(len(values), bool)
    if len(values) >= window:
        views = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)
        for begin in np.flatnonzero((np.ptp(views, axis=-1) <= STILL).all(axis=1)):
            still[begin : begin + window] = True
    return still


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First step and one past the last step of each run of true `flags`."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _steps(count: int, rate: float | None) -> str:
    return f"{count} steps" + (f" ({count / rate:.1f} s)" if rate else "")


def find_duplicates(action: Series, names: list[str]) -> Iterator[Finding]:
    """Episodes whose actions are those of another one, exactly or nearly."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, values in enumerate(action.episodes):
        groups[len(values)].append(i)
    pairs: dict[str, list[tuple[int, int]]] = {"equal": [], "nearly equal": []}
    for length, members in groups.items():
        # A few rows tell most episodes apart; only the rest is compared in full.
        rows = np.unique(np.linspace(0, length - 1, 8).astype(int))
        samples = np.stack([action.episodes[i][rows] / action.scale for i in members])
        for k, i in enumerate(members):
            candidates = np.flatnonzero(np.abs(samples[:k] - samples[k]).max(axis=(1, 2)) <= NEAR)
            for j in (members[c] for c in candidates):
                difference = np.abs(action.episodes[i] - action.episodes[j]) / action.scale
                if difference.max() <= NEAR:
                    pairs["nearly equal" if difference.any() else "equal"].append((j, i))
                    break
    for word, found in pairs.items():
        if found:
            first, second = found[0]
            message = f"{len(found)} episodes have {word} actions as an earlier one: {names[second]} as {names[first]}"
            yield Finding("duplicate", message, [names[i] for _, i in found])


def find_constants(series: Series) -> Iterator[Finding]:
    """Dimensions that never change."""
    columns = np.flatnonzero(np.ptp(series.rows, axis=0) == 0)
    if len(columns) == len(series.dimensions) > 1:
        yield Finding("constant", f"no value of {series.key} ever changes", [])
    elif len(columns):
        yield Finding("constant", f"{', '.join(series.dimensions[c] for c in columns)} never changes", [])


def find_outliers(series: Series, names: list[str]) -> Iterator[Finding]:
    """Values far outside of the rest of their dimension, which squeeze the rest when they are normalized."""
    low, high = np.percentile(series.rows, [1, 99], axis=0)
    distance = OUTLIER_FACTOR * (high - low)
    candidates = ~series.is_discrete & (high > low)
    for c in np.flatnonzero(candidates):
        is_out = [(e[:, c] < low[c] - distance[c]) | (e[:, c] > high[c] + distance[c]) for e in series.episodes]
        places = _places(is_out)
        if places:
            i, step = places[0]
            value = series.episodes[i][step, c]
            message = (
                f"{series.dimensions[c]} is {low[c]:.3g} to {high[c]:.3g} in 98% of the steps, but {value:.3g} in step "
                f"{step} of episode {names[i]}{_more(len(places))}"
            )
            yield Finding("outlier", message, [names[i] for i in sorted({i for i, _ in places})])


def _places(flags: list[NDArray[np.bool_]]) -> list[tuple[int, int]]:
    """Episode and step of every true flag."""
    return [(i, step) for i, flag in enumerate(flags) for step in np.flatnonzero(flag).tolist()]


def _more(count: int) -> str:
    return f", and in {count - 1} more" if count > 1 else ""


def find_jumps(series: Series, names: list[str]) -> Iterator[Finding]:
    """Changes between two steps that no motion makes; one finding for each place where several dimensions jump."""
    steps = [np.abs(np.diff(episode, axis=0)) for episode in series.episodes]
    all_steps = np.concatenate(steps)
    usual = np.array([np.percentile(c[c > 0], 98) if c.any() else 0 for c in all_steps.T])
    threshold = np.maximum(JUMP_FACTOR * usual, JUMP_RANGE * series.scale)
    is_jump = [(s > threshold) & ~series.is_discrete for s in steps]
    places = _places([flags.any(axis=1) for flags in is_jump])
    if not places:
        return
    i, step = places[0]
    columns = np.flatnonzero(is_jump[i][step])
    before, after = series.episodes[i][step : step + 2].astype(np.float64)
    changes = ", ".join(f"{series.dimensions[c]} {before[c]:.3g} -> {after[c]:.3g}" for c in columns[:4])
    message = (
        f"{changes} in step {step + 1} of episode {names[i]}{_more(len(places))}{_explain_jump(before, after, columns)}"
    )
    yield Finding("jump", message, [names[i] for i in sorted({i for i, _ in places})])


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
    places: list[tuple[int, int]] = []
    repeats = 0
    for i, motion in enumerate(series.motions):
        found = [
            (begin, end)
            for begin, end in _runs(motion == 0)
            if 0 < begin and end < len(motion) and end - begin <= REPEAT_RUN
            and min(motion[begin - 1], motion[end]) > REPEAT_MOTION
            and action.motions[i][begin - 1 : end + 1].max() > REPEAT_MOTION
        ]  # fmt: skip
        if len(found) >= MIN_REPEATS:
            places.append((i, found[0][0]))
            repeats += sum(end - begin for begin, end in found)
    if places and not series.is_discrete.all():
        i, step = places[0]
        message = f"{repeats} rows of {series.key} repeat the row before, first in step {step + 1} of episode {names[i]}"
        yield Finding("repeated", f"{message}, while the action moves", [names[i] for i, _ in places])


def find_saturation(action: Series) -> Iterator[Finding]:
    """Dimensions of the action that often are exactly at their minimum or maximum."""
    levels = _levels(action)
    for c in np.flatnonzero(~action.is_discrete & ~levels):
        column = action.rows[:, c]
        for word, limit in (("minimum", column.min()), ("maximum", column.max())):
            share = float((column == limit).mean())
            if share > SATURATED:
                message = f"{action.dimensions[c]} is at its {word}, {limit:.3g}, in {share:.0%} of the steps"
                yield Finding("saturated", message, [])


def _levels(series: Series) -> NDArray[np.bool_]:
    """Which dimensions (width,) are near their minimum or their maximum most of the time, as grippers are."""
    low, high = np.percentile(series.rows, [0.5, 99.5], axis=0)
    margin = LEVEL * (high - low)
    share = ((series.rows <= low + margin).mean(axis=0), (series.rows >= high - margin).mean(axis=0))
    return np.asarray((sum(share) > LEVEL_SHARE) & (np.minimum(*share) > 1 - LEVEL_SHARE - 0.1) & (high > low))


def find_chatter(action: Series, names: list[str], rate: float | None) -> Iterator[Finding]:
    """Grippers that switch, and back within a few steps."""
    longest = max(2, round(CHATTER * (rate or DEFAULT_RATE)))
    low, high = np.percentile(action.rows, [0.5, 99.5], axis=0)
    for c in np.flatnonzero(_levels(action)):
        places: list[tuple[int, int]] = []
        count = 0
        for i, episode in enumerate(action.episodes):
            switches = np.flatnonzero(np.diff(episode[:, c] > (low[c] + high[c]) / 2)) + 1
            short = switches[:-1][np.diff(switches) <= longest]
            if len(short):
                places.append((i, int(short[0])))
                count += len(short)
        if places:
            i, step = places[0]
            message = (
                f"{action.dimensions[c]} switches and back within {longest} steps, {count} times, first in step "
                f"{step} of episode {names[i]}"
            )
            yield Finding("chatter", message, [names[i] for i, _ in places])
