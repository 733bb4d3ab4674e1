"""What the lint of a dataset reads, the same for recordings and stores, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.recorded_observations import read_observations
from ddp_cli.data.recording import Recording, are_fractions
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.schema import ACTION, ActionPart, Schema
from ddp_cli.selection import parse_selection

Floats = NDArray[np.float32]

MAX_LEVELS = 12  # distinct values of a switch or a counter; a motion has more after a second
IMAGES_AT_ONCE = 32  # of a store; whole episodes of large images take much memory
LISTED = 5  # episodes of a finding, as text
DEFAULT_RATE = 10.0  # [Hz], of recordings that do not state theirs: such are recorded at 10 to 50 Hz


@dataclass(frozen=True)
class Finding:
    """Something that would hurt a policy. `message` names the first place; no `episodes`: it is in all."""

    kind: str
    message: str
    episodes: list[str]

    def __str__(self) -> str:
        where = f"; episodes {list_some(self.episodes)}" if len(self.episodes) > 1 else ""
        return f"{self.kind}: {self.message}{where}"


def list_some(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


@dataclass(frozen=True)
class LintSource:
    """A dataset. `vectors`: key -> what each dimension is called, among them the key `action`; `cameras`: key -> pixels
    of an image.
    """

    episode_names: list[str]
    lengths: list[int]
    rate: float | None
    """[Hz], None if it is not known."""
    vectors: dict[str, tuple[str, ...]]
    cameras: dict[str, int]
    read: Callable[[str, int], NDArray[Any]]
    """Values (n, width) of a vector in an episode; DataError if they cannot be read."""
    images: Callable[[str, int], Iterator[NDArray[Any]]]
    """The images of a camera in an episode, from 0 to 255, one by one."""
    policy_episodes: Collection[str] = ()
    """Names of episodes in which a policy acted: it may wait or take long, since others are imitated."""
    action: Sequence[ActionPart] = ()
    """The parts of the action; empty if they are not known."""


@dataclass(frozen=True)
class Series:
    """A vector, or the action, in all episodes that can be read: (n, width) each."""

    key: str
    dimensions: tuple[str, ...]
    episodes: list[Floats]

    @cached_property
    def rows(self) -> Floats:
        """All episodes, one after another (N, width)."""
        return np.concatenate(self.episodes)

    @cached_property
    def scale(self) -> Floats:
        """The range of each dimension (width,), without the rarest values; 1 where nothing changes.

        A single wrong value would hide all others.
        """
        low, high = np.percentile(self.rows, [0.5, 99.5], axis=0)
        ranges = np.where(high > low, high - low, np.ptp(self.rows, axis=0))
        return np.asarray(np.where(ranges > 0, ranges, 1), np.float32)

    @cached_property
    def is_discrete(self) -> NDArray[np.bool_]:
        """Which dimensions (width,) have a few values only: switches and counters."""
        return np.array([len(np.unique(column)) <= MAX_LEVELS for column in self.rows.T])

    @cached_property
    def motions(self) -> list[Floats]:
        """Per episode the largest change of a dimension in each step, relative to its range (n - 1,)."""
        return [(np.abs(np.diff(episode, axis=0)) / self.scale).max(axis=1) for episode in self.episodes]


def recording_source(recording: Recording, schema: Schema, rate: float | None) -> LintSource:
    """The arrays of `recording` that `schema` names."""
    sources = {key: vector.source for key, vector in schema.vectors.items()} | {ACTION: schema.action_source}
    # One rule for all episodes, as in a conversion: by itself, a dark image of 0 to 255 looks like one of 0 to 1.
    factors: dict[str, int] = {}

    def read(key: str, episode: int) -> NDArray[Any]:
        selection = parse_selection(sources[key])
        values = recording.read(selection.array, episode)
        return values.reshape(len(values), -1)[:, selection.elements]

    def images(key: str, episode: int) -> Iterator[NDArray[Any]]:
        array = schema.cameras[key].source
        if recording.arrays[array].dtype == np.uint8:
            yield from recording.iter_images(array, episode, exact=False)
            return
        values = recording.read(array, episode)
        factor = factors.setdefault(key, 255 if are_fractions(values) else 1)
        yield from (image * factor if factor > 1 else image for image in values)

    return LintSource(
        recording.episode_names, recording.lengths, rate, dimension_names(schema, schema.action),
        _pixels(schema, list(schema.cameras)), read, images, action=schema.action,
    )  # fmt: skip


def store_source(store: Store) -> LintSource:
    """The arrays of a store."""
    schema, bounds, names = store.task.schema, store.episode_bounds, store.episode_names
    action = store.task.action_parts(store.attrs["action"]["convention"])
    if len(set(names)) < len(names):  # such names would not tell episodes apart
        names = [str(i) for i in range(len(bounds))]

    def read(key: str, episode: int) -> NDArray[Any]:
        return store.read(key, rows=slice(*bounds[episode]))

    def images(key: str, episode: int) -> Iterator[NDArray[Any]]:
        begin, end = bounds[episode]
        for first in range(begin, end, IMAGES_AT_ONCE):
            yield from store.read(key, rows=slice(first, min(first + IMAGES_AT_ONCE, end)))

    return LintSource(
        names,
        [end - begin for begin, end in bounds],
        schema.rate,
        dimension_names(schema, action),
        _pixels(schema, store.image_keys),
        read,
        images,
        store.policy_episodes,
        action,
    )


def demo_source(demos: DemoFile, names: list[str]) -> LintSource:
    """The actions of the demonstrations `names`, with the simulator states, or the recorded observations without any.
    Images are left out.
    """
    schema = demos.task.schema
    width = demos.array(names[0], "actions").shape[1]
    dimensions = {ACTION: _name(ACTION, width, ())}
    if demos.has_states:
        dimensions = {"states": _name("states", demos.array(names[0], "states").shape[1], ())[1:]} | dimensions
    else:
        keys = [key for key in schema.vectors if key in demos.observation_shapes(names[0])]
        dimensions = {
            key: _name(key, schema.vectors[key].width, schema.vectors[key].names) for key in keys
        } | dimensions

    def read(key: str, episode: int) -> NDArray[Any]:
        name = names[episode]
        if key == "states":
            return demos.read(name).states[:, 1:]  # without the time
        return demos.read(name).actions if key == ACTION else read_observations(demos, name, (key,))[key]

    return LintSource(
        names, [demos.n_steps(name) for name in names], schema.rate, dimensions, {}, read, lambda *_: iter(()),
        demos.policy_episodes(), demos.task.action_parts(demos.info.actions),
    )  # fmt: skip


def _pixels(schema: Schema, keys: Sequence[str]) -> dict[str, int]:
    return {key: schema.cameras[key].height * schema.cameras[key].width for key in keys}


def dimension_names(schema: Schema, action: Sequence[ActionPart]) -> dict[str, tuple[str, ...]]:
    """What pages and findings call each dimension of the vectors and of the action."""
    dimensions = {key: _name(key, vector.width, vector.names) for key, vector in schema.vectors.items()}
    return dimensions | {ACTION: tuple(name for part in action for name in _name_part(part))}


def _name_part(part: ActionPart) -> tuple[str, ...]:
    key = ACTION if part.name == ACTION else f"{ACTION} {part.name}"
    return (key,) if part.width == 1 and not part.names else _name(key, part.width, part.names)


def _name(key: str, width: int, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{key} {name}" for name in names) or tuple(f"{key}[{i}]" for i in range(width))


def read_series(source: LintSource) -> tuple[list[Series], list[int], list[Finding]]:
    """All vectors and the action, the episodes that they are of, and findings on the others.

    Left out are episodes that cannot be read, or hold values that are not finite.
    """
    series: dict[str, list[Floats]] = {key: [] for key in source.vectors}
    kept: list[int] = []
    faults: dict[str, dict[int, str]] = {"unreadable": {}, "not finite": {}}
    for i, name in enumerate(source.episode_names):
        try:
            # Values beyond float32 are not finite in a store.
            with np.errstate(over="ignore"):
                arrays = {key: source.read(key, i).astype(np.float32) for key in source.vectors}
        except DataError as e:
            faults["unreadable"][i] = e.message
            continue
        bad = {key: np.argwhere(~np.isfinite(values)) for key, values in arrays.items()}
        place = next(((key, int(at[0, 0]), int(at[0, 1])) for key, at in bad.items() if len(at)), None)
        if place:
            key, step, column = place
            faults["not finite"][i] = f"{source.vectors[key][column]} in step {step} of episode {name}"
            continue
        kept.append(i)
        for key, values in arrays.items():
            series[key].append(values)
    findings = [
        Finding(kind, _describe(found), [source.episode_names[i] for i in found])
        for kind, found in faults.items()
        if found
    ]
    return [Series(key, source.vectors[key], episodes) for key, episodes in series.items()], kept, findings


def _describe(faults: dict[int, str]) -> str:
    first = next(iter(faults.values())).rstrip(".")
    return first if len(faults) == 1 else f"{len(faults)} episodes, the first: {first}"


def find_runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First step and one past the last step of each run of true `flags`."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def describe_place(step: int, name: str) -> str:
    """A step of the episode `name`, as findings call it."""
    return f"step {step} of episode {name}"
