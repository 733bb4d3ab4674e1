"""The steps of each episode of a dataset without its pauses, as the lint finds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lint_episodes import pauses_of_episode, waiting_steps
from ddp_cli.data.lint_source import DEFAULT_RATE, LintSource, find_runs, read_series

KEPT_PAUSE = 0.5  # [s]: a gripper may close in it that is not observed

Steps = NDArray[np.int64]
"""Steps of an episode that are kept, increasing."""


def all_steps(lengths: Sequence[int]) -> list[Steps]:
    """All steps of episodes of `lengths` steps."""
    return [np.arange(n) for n in lengths]


def steps_in_motion(source: LintSource) -> list[Steps]:
    """The steps of every episode that are kept. The last step of a pause at the start stays, and the first one of a
    pause at the end; a pause in between is shortened to `KEPT_PAUSE`. Steps in which delta actions command no motion
    are left out altogether: a policy that predicts none stays where it is, and sees the same again. Episodes that
    nothing moves in, in which a policy acted, or that cannot be read, stay whole.
    """
    kept_steps = all_steps(source.lengths)
    lead = max(1, round(KEPT_PAUSE * (source.rate or DEFAULT_RATE)))
    series, kept, _ = read_series(source)
    for k, i in enumerate(kept):
        if source.episode_names[i] in source.policy_episodes:
            continue
        is_kept = np.ones(source.lengths[i], np.bool_)
        for place, begin, end in pauses_of_episode(series, k, source.rate):
            if end - begin == source.lengths[i]:
                continue
            cut = {
                "start": slice(begin, end - 1), "middle": slice(begin + lead, end), "end": slice(begin + 1, end),
            }  # fmt: skip
            is_kept[cut[place]] = False
        n = len(is_kept)
        for begin, end in find_runs(waiting_steps(source, series[-1].episodes[k])):
            if end - begin < n:
                is_kept[begin + (end == n) : end - (begin == 0)] = False
        kept_steps[i] = np.flatnonzero(is_kept)
    return kept_steps


def describe_trims(lengths: Sequence[int], kept_steps: Sequence[Steps]) -> str:
    """What was left out of episodes of `lengths` steps, of which `kept_steps` remain."""
    trims = [n - len(steps) for n, steps in zip(lengths, kept_steps, strict=True)]
    trimmed = [n for n in trims if n]
    return f"pauses: {sum(trimmed)} of {sum(lengths)} steps left out, in {len(trimmed)} of {len(trims)} episodes"
