"""The steps of each episode of a dataset without the pauses at its start and end, as the lint finds them."""

from __future__ import annotations

from collections.abc import Sequence

from ddp_cli.data.lint_episodes import pauses_of_episode
from ddp_cli.data.lint_source import LintSource, read_series


def whole_spans(lengths: Sequence[int]) -> list[slice]:
    """All steps of episodes of `lengths` steps."""
    return [slice(0, n) for n in lengths]


def find_spans(source: LintSource) -> list[slice]:
    """The steps of every episode that are kept. The last step of a pause at the start stays, and the first one of a
    pause at the end. Episodes that nothing moves in, or that cannot be read, stay whole.
    """
    spans = whole_spans(source.lengths)
    series, kept, _ = read_series(source)
    for k, i in enumerate(kept):
        for place, begin, end in pauses_of_episode(series, k, source.rate):
            if end - begin == source.lengths[i]:
                continue
            if place == "start":
                spans[i] = slice(end - 1, spans[i].stop)
            elif place == "end":
                spans[i] = slice(spans[i].start, begin + 1)
    return spans


def describe_trims(lengths: Sequence[int], spans: Sequence[slice]) -> str:
    """What was left out of episodes of `lengths` steps, of which `spans` are kept."""
    trims = [n - (span.stop - span.start) for n, span in zip(lengths, spans, strict=True)]
    trimmed = [n for n in trims if n]
    return f"pauses: {sum(trimmed)} steps at the start or the end of {len(trimmed)} of {len(trims)} episodes left out"
