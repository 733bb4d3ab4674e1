"""The steps of each episode of a recording without the pauses at its start and end, as the lint finds them."""

from __future__ import annotations

from collections.abc import Sequence

from ddp_cli.data.lint_episodes import pauses_of_episode
from ddp_cli.data.lint_source import read_series, recording_source
from ddp_cli.data.recording import Recording
from ddp_cli.schema import Schema


def find_spans(recording: Recording, schema: Schema, trim_pauses: bool) -> list[slice]:
    """The steps of every episode that are kept: all without `trim_pauses`. The last step of a pause at the start stays,
    and the first one of a pause at the end. Episodes that nothing moves in, or that cannot be read, stay whole.
    """
    spans = [slice(0, n) for n in recording.lengths]
    if not trim_pauses:
        return spans
    rate = recording.rate or schema.rate
    series, kept, _ = read_series(recording_source(recording, schema, rate))
    for k, i in enumerate(kept):
        for place, begin, end in pauses_of_episode(series, k, rate):
            if end - begin == recording.lengths[i]:
                continue
            if place == "start":
                spans[i] = slice(end - 1, spans[i].stop)
            elif place == "end":
                spans[i] = slice(spans[i].start, begin + 1)
    return spans


def describe_trims(recording: Recording, spans: Sequence[slice], indices: Sequence[int]) -> str:
    """What was left out of the episodes `indices`."""
    trims = {i: recording.lengths[i] - (spans[i].stop - spans[i].start) for i in indices}
    trimmed = [n for n in trims.values() if n]
    return f"pauses: {sum(trimmed)} steps at the start or the end of {len(trimmed)} of {len(trims)} episodes left out"
