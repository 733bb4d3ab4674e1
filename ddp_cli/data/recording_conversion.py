"""Converts a recording of any robot to a store, as it was recorded: nothing is rendered or replayed."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.check_summary import not_verified
from ddp_cli.data.episode_selection import select_episodes
from ddp_cli.data.lint_source import recording_source
from ddp_cli.data.recording import Episode, Recording, are_fractions, check_are_images, to_images
from ddp_cli.data.resampling import Resampling
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.data.trimming import Steps, all_steps, describe_trims, steps_in_motion
from ddp_cli.errors import DataError
from ddp_cli.locks import lock_output
from ddp_cli.schema import ACTION, Camera, Schema
from ddp_cli.selection import parse_selection
from ddp_cli.tasks import RECORDED, Task

LISTED_INSTRUCTIONS = 5
MOTION_NAME = re.compile(r"vel|twist|delta|speed", re.IGNORECASE)
NO_SIMULATOR = "the recording has no simulator in which its actions could be replayed"


def convert_recording(
    recording: Recording,
    schema: Schema,
    name: str,
    horizon: int | None,
    out: Path,
    only: str | None,
    zarr_format: int,
    progress: Callable[[int, int], None],
    skip_bad: bool = False,
    dropped: Collection[str] = (),
    only_task: str | None = None,
    trim_pauses: bool = False,
    bgr: bool = False,
) -> dict[str, str]:
    """Writes the episodes that `only` selects, without those named in `dropped`, to the store `out`, for a task `name`
    whose episodes have at most `horizon` steps; None: as many as the longest recorded one. A conversion that was
    interrupted or failed is resumed. With `bgr`, red and blue are exchanged in all images of three channels.

    Returns the names of the episodes that `skip_bad` left out -> fault; without it, the first one is a DataError.
    """
    indices = select_episodes(len(recording.lengths), only, f"'{recording.path}'")
    indices = _choose_instruction(recording, _drop(recording, indices, dropped), only_task)
    faults = _find_faults(recording, schema, indices, skip_bad)
    left_out = {recording.episode_names[i]: fault for i, fault in sorted(faults.items())}
    indices = [i for i in indices if i not in faults]
    resampling = Resampling(recording.rate or schema.rate, schema.rate)
    if recording.rate not in (None, schema.rate):
        recording.notes.append(resampling.describe(schema.action))
        schema = schema.model_copy(update={"action": resampling.parts(schema.action)})
    names = [name for part in schema.action if part.representation == "plain" for name in part.names]
    if motions := [name for name in names if MOTION_NAME.search(name)]:
        recording.notes.append(
            f"the action '{motions[0]}' seems to be a motion, which only a schema declares (delta): where a chunk is "
            "late, the robot repeats the last action"
        )
    steps = all_steps(recording.lengths)
    if trim_pauses:
        steps = steps_in_motion(recording_source(recording, schema, recording.rate or schema.rate))
        recording.notes.append(describe_trims([recording.lengths[i] for i in indices], [steps[i] for i in indices]))
    lengths = [len(resampling.kept(len(steps[i]))) for i in indices]
    task = Task(name, schema, None, horizon or len(resampling.kept(max(recording.lengths))))
    attributes: dict[str, Any] = {
        "render": "full",
        "obs": "image" if schema.cameras else "state",
        "env_args": {},
        "versions": {},
        "action": {"convention": RECORDED, "dim": schema.action_dim},
        "source": {
            "file": recording.path.name, "sha256": recording.sha256(),
            "demos": [recording.episode_names[i] for i in indices], "left_out": left_out,
            "instructions": sorted({recording.instructions[i] for i in indices} - {""}),
            **({"bgr": True} if bgr else {}),
        },
    }  # fmt: skip
    with lock_output(out), StoreWriter(out, task, lengths, attributes, zarr_format) as writer:
        episodes = _EpisodeReader(recording, schema, resampling, steps, indices[0], bgr)
        writer.extend(map(episodes.read, indices[writer.episodes :]), progress)
        recording.notes += episodes.describe_masks()
        writer.finish({"check": not_verified(NO_SIMULATOR)})
    return left_out


def _find_faults(recording: Recording, schema: Schema, indices: list[int], skip_bad: bool) -> dict[int, str]:
    """Faults of the episodes `indices`, by index. DataError if there are any, unless `skip_bad` is set and other
    episodes remain.
    """
    sources = [*(camera.source for camera in schema.cameras.values()), *_vector_sources(schema).values()]
    arrays = {parse_selection(source).array for source in sources}
    faults = {i: fault for i, fault in recording.faults(arrays).items() if i in set(indices)}
    faults |= _find_faulty_values(recording, schema, [i for i in indices if i not in faults])
    faults = {i: _without_place(recording, i, fault) for i, fault in sorted(faults.items())}
    if faults and (not skip_bad or len(faults) == len(indices)):
        i, fault = next(iter(faults.items()))
        more = f", and {len(faults) - 1} more episodes have faults" if len(faults) > 1 else ""
        raise DataError(
            f"{_place(recording, i)}: {fault.rstrip('.')}{more}.",
            "Choose other arrays with --keys."
            if len(faults) == len(indices)
            else "Leave such episodes out with --skip-bad, or choose other arrays with --keys.",
        )
    return faults


def _find_faulty_values(recording: Recording, schema: Schema, indices: list[int]) -> dict[int, str]:
    """Those of the episodes `indices` whose vectors or actions cannot be read, or are not finite -> fault.

    Images are not read: decoding them takes as long as the conversion.
    """
    faults = {}
    for i in indices:
        try:
            for key, source in _vector_sources(schema).items():
                _read_vector(recording, key, source, i)
        except DataError as e:
            faults[i] = e.message
    return faults


def _vector_sources(schema: Schema) -> dict[str, str]:
    """Where the vectors and the action are in the recording, by key."""
    return {key: vector.source for key, vector in schema.vectors.items()} | {ACTION: schema.action_source}


def _read_vector(recording: Recording, key: str, source: str, i: int) -> NDArray[np.float32]:
    """A vector, or the action, of episode `i`; DataError if its values are not finite."""
    selection = parse_selection(source)
    values = recording.read(selection.array, i)
    with np.errstate(over="ignore"):  # values beyond float32 are not finite in a store
        values = values.reshape(len(values), -1)[:, selection.elements].astype(np.float32)
    if not np.isfinite(values).all():
        step = int(np.argwhere(~np.isfinite(values))[0][0])
        raise DataError(
            f"{_place(recording, i)}: {key} is not finite in step {step}.",
            f"Leave it out with --skip-bad or --drop-episodes {recording.episode_names[i]}.",
        )
    return values


def _place(recording: Recording, i: int) -> str:
    return f"'{recording.path}' episode {recording.episode_names[i]}"


def _without_place(recording: Recording, i: int, fault: str) -> str:
    """`fault` without the recording and the episode, which it may begin with."""
    return fault.removeprefix(_place(recording, i)).removeprefix(f"'{recording.path}'").lstrip(": ")


def _drop(recording: Recording, indices: list[int], names: Collection[str]) -> list[int]:
    """`indices` without the episodes called `names`."""
    unknown = [name for name in names if name not in recording.episode_names]
    if unknown:
        raise DataError(
            f"'{recording.path}' has no episode '{unknown[0]}'.",
            f"Its episodes are called {recording.episode_names[0]} to {recording.episode_names[-1]}.",
        )
    kept = [i for i in indices if recording.episode_names[i] not in names]
    if not kept:
        raise DataError(f"no episode of '{recording.path}' is left.", "Drop fewer episodes.")
    return kept


def _choose_instruction(recording: Recording, indices: list[int], pattern: str | None) -> list[int]:
    """Those of `indices` whose instruction matches `pattern`, all of them if they have the same one. DataError for
    several: a policy is not told which one to follow.
    """
    instructions = dict.fromkeys(recording.instructions[i] for i in indices)
    listed = ", ".join(f"'{text}'" for text in list(instructions)[:LISTED_INSTRUCTIONS])
    more = f" and {len(instructions) - LISTED_INSTRUCTIONS} more" if len(instructions) > LISTED_INSTRUCTIONS else ""
    if pattern is not None:
        chosen = [i for i in indices if fnmatch.fnmatchcase(recording.instructions[i], pattern)]
        if not chosen:
            raise DataError(
                f"no instruction of '{recording.path}' is '{pattern}'.",
                f"It has {listed}{more}." if any(instructions) else "It has none: leave out --only-task.",
            )
        indices = chosen
    elif len(instructions) > 1:
        raise DataError(
            f"'{recording.path}' has {len(instructions)} instructions, and a policy is not told which to follow: "
            f"{listed}{more}.",
            "Choose with --only-task TEXT; '*' takes all.",
        )
    if recording.instructions[indices[0]]:
        texts = dict.fromkeys(recording.instructions[i] for i in indices)
        recording.notes.append(
            f"instruction: {next(iter(texts))}" if len(texts) == 1 else f"{len(texts)} instructions as one task"
        )
    return indices


class _EpisodeReader:
    """Reads episodes in the arrays of a store."""

    def __init__(
        self,
        recording: Recording,
        schema: Schema,
        resampling: Resampling,
        steps: Sequence[Steps],
        first: int,
        bgr: bool,
    ) -> None:
        self._recording, self._schema, self._resampling, self._steps = recording, schema, resampling, steps
        self._bgr = bgr
        self._highest = dict.fromkeys(schema.cameras, 0)  # the largest value of each camera's images
        # One rule for all episodes: by itself, a dark image of 0 to 255 looks like one of 0 to 1.
        self._is_fraction = {key: self._holds_fractions(key, first) for key in schema.cameras}

    def _holds_fractions(self, key: str, first: int) -> bool:
        """Whether the images of a camera are of 0 to 1; DataError if they are no images."""
        source = self._schema.cameras[key].source
        if self._recording.arrays[source].dtype.kind not in "fb":
            return False
        values = self._recording.read(source, first)
        check_are_images(values, f"{_place(self._recording, first)}, {key}")
        return are_fractions(values)

    def read(self, i: int) -> Episode:
        """The arrays of episode `i`."""
        where = _place(self._recording, i)
        steps = self._steps[i]
        kept = self._resampling.kept(len(steps))
        episode = self._read_cameras(i, steps[kept], where)
        for key in self._schema.cameras:
            low, high = int(episode[key].min()), int(episode[key].max())
            self._highest[key] = max(self._highest[key], high)
            if low == high:
                name = self._recording.episode_names[i]
                self._recording.notes.append(f"episode {name}: {key} has a single color in all steps")
        for key, source in _vector_sources(self._schema).items():
            values = _read_vector(self._recording, key, source, i)[steps]
            is_action = key == ACTION
            episode[key] = self._resampling.actions(values, self._schema.action) if is_action else values[kept]
        return episode

    def describe_masks(self) -> list[str]:
        """Notes on images of 0 and 1, in which a policy would see nothing."""
        return [
            f"{key}: its images hold only 0 and 1 of 255; record masks as booleans, or as 0 and 255"
            for key, highest in self._highest.items()
            if highest == 1
        ]

    def _read_cameras(self, i: int, steps: NDArray[np.int64], where: str) -> Episode:
        """The images of all cameras in `steps`."""
        keys: dict[Camera, list[str]] = {}  # one array may be read under several keys, and in several sizes
        for key, camera in self._schema.cameras.items():
            keys.setdefault(camera, []).append(key)
        videos = [camera for camera in keys if camera.source in self._recording.in_videos]
        images: Episode = {}
        # Videos at once: each has a decoder, a process of its own that would wait for the others.
        with ThreadPoolExecutor() as pool:
            reads = [pool.submit(self._read_images, camera, keys[camera], i, steps, where) for camera in videos]
            for camera in [camera for camera in keys if camera not in videos]:
                images |= self._read_images(camera, keys[camera], i, steps, where)
            for read in reads:
                images |= read.result()
        return images

    def _read_images(self, camera: Camera, keys: list[str], i: int, steps: NDArray[np.int64], where: str) -> Episode:
        """The images of `camera`, under each of `keys`. They are resized one by one: encoded ones are larger than what
        is kept.
        """
        images = np.empty((len(steps), *camera.shape), np.uint8)
        rows = {step: row for row, step in enumerate(steps.tolist())}
        for step, image in enumerate(self._recording.iter_images(camera.source, i, camera=camera)):
            if step in rows:
                values = to_images(image[None], self._is_fraction[keys[0]], f"{where}, {keys[0]}")
                taken = camera.take(values[0])
                images[rows[step]] = taken[..., ::-1] if self._bgr else taken
        return dict.fromkeys(keys, images)
