"""What in the episodes of a dataset would hurt a policy: their lengths, pauses and duplicates.

Shapes: n steps of an episode. Motion is relative to the range of each dimension in the dataset: units are not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lint_source import DEFAULT_RATE, Finding, Floats, LintSource, Series, describe_place, find_runs

STILL = 0.01  # of the range of each dimension, within a window: more than the noise of servos, less than a slow motion
MAX_DRIFT = 0.03  # of the range, in a whole pause
WINDOW = 0.5  # [s]; a person who moves slowly needs it for 1% of the range
MIN_PAUSE = 1.0  # [s]; shorter ones belong to grasping and reversing
MIN_EDGE_PAUSE = 0.5  # [s] at the start and at the end, where nothing has to be waited for
PAUSE_SHARE = 0.005  # of all steps; fewer do no harm
LONG_PAUSE = 2.0  # [s]; a single one is worth a look
REST = 1e-6  # of a delta action that commands no motion
GRIPPER_TIME = 0.6  # [s] after a change of the gripper in which nobody commands a motion: the fingers are moving
WAITING_SHARE = 0.3  # of all steps; with a joystick, people command no motion in a few
NEAR = 0.01  # of the range; two motions of a person differ by more at some step
SHORT, LONG = 1 / 3, 3.0  # of the median length


def lint_episodes(source: LintSource, series: list[Series], names: list[str]) -> Iterator[Finding]:
    """Findings on the episodes `names`, which `series` hold; the action is the last of them."""
    yield from find_lengths(source)
    yield from find_pauses(series, names, source.rate, source.policy_episodes)
    yield from find_waiting(source, series[-1], names)
    yield from find_duplicates(series[-1], names)


def find_lengths(source: LintSource) -> Iterator[Finding]:
    """Episodes much shorter or longer than the median; those of a policy may have any length."""
    names = source.episode_names
    # Those without steps cannot be read, which is a finding of its own.
    lengths = {i: n for i, n in enumerate(source.lengths) if n and names[i] not in source.policy_episodes}
    if not lengths:
        return
    median = float(np.median(list(lengths.values())))
    odd = {
        "shorter": [i for i, n in lengths.items() if n < SHORT * median],
        "longer": [i for i, n in lengths.items() if n > LONG * median],
    }
    for word, episodes in odd.items():
        if episodes:
            first = f"episode {source.episode_names[episodes[0]]} has {source.lengths[episodes[0]]} steps"
            message = f"{len(episodes)} episodes are much {word} than the median of {median:g} steps: {first}"
            yield Finding("length", message, [source.episode_names[i] for i in episodes])


def find_pauses(
    series: list[Series], names: list[str], rate: float | None, policy_episodes: Collection[str] = ()
) -> Iterator[Finding]:
    """Runs of steps in which neither a vector nor the action moves; not of episodes in which a policy acted."""
    pauses: dict[str, list[tuple[int, int, int]]] = {"start": [], "middle": [], "end": []}
    for i in (i for i, name in enumerate(names) if name not in policy_episodes):
        for place, begin, end in pauses_of_episode(series, i, rate):
            pauses[place].append((i, begin, end - begin))
    hertz = rate or DEFAULT_RATE
    words = {"start": "begin with a pause", "middle": "pause", "end": "end with a pause"}
    for place, found in pauses.items():
        total = sum(length for *_, length in found)
        i, begin, longest = max(found, key=lambda pause: pause[2], default=(0, 0, 0))
        if total >= PAUSE_SHARE * len(series[0].rows) or longest >= LONG_PAUSE * hertz:
            episodes = sorted({pause[0] for pause in found})
            longest_one = f"the longest of {_steps(longest, rate)} from {describe_place(begin, names[i])}"
            message = f"{len(episodes)} of {len(names)} episodes {words[place]}: {_steps(total, rate)}, {longest_one}"
            yield Finding("pause" if place == "middle" else f"pause at {place}", message, [names[i] for i in episodes])


def pauses_of_episode(series: list[Series], episode: int, rate: float | None) -> Iterator[tuple[str, int, int]]:
    """Place (start, middle, end), first step and one past the last step of each pause of an episode."""
    hertz = rate or DEFAULT_RATE
    window = max(2, round(WINDOW * hertz))
    least = {"middle": max(2, round(MIN_PAUSE * hertz))}
    moving = [one for one in series if np.ptp(one.rows, axis=0).any()]
    if not moving:
        return
    still = np.logical_and.reduce([_is_still(one.episodes[episode] / one.scale, window) for one in moving])
    for begin, end in find_runs(still):
        if any((np.ptp(one.episodes[episode][begin:end] / one.scale, axis=0) > MAX_DRIFT).any() for one in moving):
            continue  # a slow motion
        place = "start" if begin == 0 else "end" if end == len(still) else "middle"
        if end - begin >= least.get(place, max(2, round(MIN_EDGE_PAUSE * hertz))):
            yield place, begin, end


def find_waiting(source: LintSource, action: Series, names: list[str]) -> Iterator[Finding]:
    """Episodes in which most steps command no motion, as between the key strokes of a person."""
    waiting = {
        name: waiting_steps(source, values)
        for name, values in zip(names, action.episodes, strict=True)
        if name not in source.policy_episodes
    }
    total, n = (sum(f(steps) for steps in waiting.values()) for f in (np.count_nonzero, len))
    if total > WAITING_SHARE * n:
        episodes = [name for name, steps in waiting.items() if steps.mean() > WAITING_SHARE]
        name, steps = max(waiting.items(), key=lambda item: item[1].mean())
        message = (
            f"{total} of {n} steps command no motion, the most in episode {name}: {np.count_nonzero(steps)} "
            f"of {len(steps)}"
        )
        yield Finding("no command", message, episodes)


def waiting_steps(source: LintSource, action: Floats) -> NDArray[np.bool_]:
    """The steps (n,) in which delta actions command no motion, neither in the step before nor in `GRIPPER_TIME` after a
    change of the rest of the action.
    """
    is_motion = np.array([part.representation == "delta" for part in source.action for _ in range(part.width)], bool)
    if not is_motion.any() or len(is_motion) != action.shape[1]:
        return np.zeros(len(action), np.bool_)
    rests = (np.abs(action[:, is_motion]) < REST).all(axis=1)
    rested = np.concatenate([[True], rests[:-1]])
    changes = np.concatenate([[False], (np.diff(action[:, ~is_motion], axis=0) != 0).any(axis=1)])
    window = np.ones(max(1, round(GRIPPER_TIME * (source.rate or DEFAULT_RATE))))
    gripper_moves = np.convolve(changes, window)[: len(changes)] > 0
    return np.asarray(rests & rested & ~gripper_moves)


def _is_still(values: Floats, window: int) -> NDArray[np.bool_]:
    """The steps (n,) in a window of `window` steps within which no value changes by more than STILL."""
    still = np.zeros(len(values), bool)
    if len(values) >= window:
        views = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)
        for begin in np.flatnonzero((np.ptp(views, axis=-1) <= STILL).all(axis=1)):
            still[begin : begin + window] = True
    return still


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
