"""The steps of each episode of a dataset without its pauses, as the lint finds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lint_episodes import pauses_of_episode
from ddp_cli.data.lint_source import LintSource, read_series

Steps = NDArray[np.int64]
"""Steps of an episode that are kept, increasing."""


def all_steps(lengths: Sequence[int]) -> list[Steps]:
    """All steps of episodes of `lengths` steps."""
    return [np.arange(n) for n in lengths]


def steps_in_motion(source: LintSource) -> list[Steps]:
    """The steps of every episode that are kept. The last step of a pause at the start stays, the first one of a pause
    at the end, and both of a pause in between. Episodes that nothing moves in, or that cannot be read, stay whole.
    """
    kept_steps = all_steps(source.lengths)
    series, kept, _ = read_series(source)
    for k, i in enumerate(kept):
        is_kept = np.ones(source.lengths[i], np.bool_)
        for place, begin, end in pauses_of_episode(series, k, source.rate):
            if end - begin < source.lengths[i]:
                is_kept[begin if place == "start" else begin + 1 : end if place == "end" else end - 1] = False
        kept_steps[i] = np.flatnonzero(is_kept)
    return kept_steps


def describe_trims(lengths: Sequence[int], kept_steps: Sequence[Steps]) -> str:
    """What was left out of episodes of `lengths` steps, of which `kept_steps` remain."""
    trims = [n - len(steps) for n, steps in zip(lengths, kept_steps, strict=True)]
    trimmed = [n for n in trims if n]
    return f"pauses: {sum(trimmed)} of {sum(lengths)} steps left out, in {len(trimmed)} of {len(trims)} episodes"
