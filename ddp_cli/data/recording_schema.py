"""The schema of a recording: which of its arrays are cameras, vectors and the action, and what they are called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ddp_cli.data.recording import Recording, StepArray
from ddp_cli.errors import ConfigError, DataError
from ddp_cli.schema import RESERVED_KEYS, ActionPart, Camera, Schema, Vector
from ddp_cli.selection import Selection, parse_selection

MAX_VECTOR = 512  # wider arrays, such as point clouds, are observed only if they are named


def infer_schema(
    recording: Recording, keys: str | None = None, action: str | None = None, rate: float | None = None
) -> Schema:
    """The schema of `recording`: all arrays that a policy can observe, or those that `keys` lists.

    `keys` is like `img,agent_pos=data/state[0:2]`; `action` names the array of the actions. Their meaning is not known:
    the action is one part, plain. ConfigError or DataError if something is missing.
    """
    _check_rate(recording, rate)
    rate = rate or recording.rate or recording.default_rate
    if rate is None:
        raise DataError(f"'{recording.path}' does not state its control rate.", "Add --rate, in Hz.")
    action_source = _find(recording, action or recording.action)
    if keys:
        entries = [_parse_entry(recording, entry) for entry in keys.split(",")]
    else:
        observed = [name for name in recording.observations if name != parse_selection(action_source).array]
        entries = [(None, name) for name in observed if _is_observable(recording.arrays[name])]
        wide = [name for name in observed if recording.arrays[name].is_numeric and (None, name) not in entries]
        notes = [
            f"{name}: more than {MAX_VECTOR} values per step; it is observed only if --keys names it" for name in wide
        ]
        recording.notes += [note for note in notes if note not in recording.notes]
    cameras: dict[str, Camera] = {}
    vectors: dict[str, Vector] = {}
    for key, source in _with_keys(recording, entries).items():
        selection = parse_selection(source)
        step = recording.arrays[selection.array]
        image = step.image_shape if selection.elements == slice(None) else None
        if image:
            cameras[key] = Camera(height=image[0], width=image[1], channels=1 if image[2] == 1 else 3, source=source)
        else:
            vectors[key] = Vector(width=_width(source, recording), source=source, names=_names(source, recording))
    width = _width(action_source, recording)
    part = ActionPart(name="action", width=width, names=_names(action_source, recording))
    return Schema(rate=rate, cameras=cameras, vectors=vectors, action=(part,), action_source=action_source)


def _check_rate(recording: Recording, rate: float | None) -> None:
    """DataError unless the recording can be converted at `rate`: its own, or a lower one."""
    if recording.rate and rate and rate > recording.rate:
        raise DataError(
            f"'{recording.path}' was recorded at {recording.rate:g} Hz, {rate:g} Hz is more.",
            "Resampling needs a lower rate: no images can be made in between.",
        )


def plan_recording(recording: Recording) -> tuple[dict[str, Any], str]:
    """The schema of a recording as JSON, empty if options are missing, and what `ddp convert` would do."""
    try:
        # The rate may have to be stated: any stands for it here.
        known_rate = recording.rate or recording.default_rate
        schema = infer_schema(recording, rate=known_rate or 1.0).to_json() | {"rate": known_rate}
    except DataError as e:
        return {}, f"needs more options: {e.message} {e.hint}"
    needs_rate = "" if known_rate else ", with the control rate given by --rate"
    observed = ", ".join([*schema.get("cameras", {}), *schema.get("vectors", {})])
    n_instructions = len(set(recording.instructions))
    needs_choice = f", of one of {n_instructions} instructions, chosen by --only-task" if n_instructions > 1 else ""
    return schema, f"takes {observed} and the actions as they were recorded{needs_rate}{needs_choice}"


def _parse_entry(recording: Recording, entry: str) -> tuple[str | None, str]:
    """Key, None if it is not stated, and source of an entry of --keys."""
    key, equals, source = entry.strip().partition("=")
    return (key, _find(recording, source)) if equals else (None, _find(recording, key))


def _find(recording: Recording, source: str) -> str:
    """The full name of `source`, which may lack its folder; DataError lists the arrays there are."""
    selection = parse_selection(source)
    matches = _matches(selection.array, recording.arrays)
    if len(matches) == 1:
        return source.replace(selection.array, matches[0], 1)
    fault = f"has {'several arrays' if matches else 'no array'} '{selection.array}'."
    if not matches and (unreadable := _matches(selection.array, recording.unreadable)):
        fault = f"has '{unreadable[0]}', but {recording.unreadable[unreadable[0]]}."
    raise DataError(
        f"'{recording.path}' {fault}",
        f"It has {', '.join(recording.arrays)}; --keys and --action-key name the ones to use.",
    )


def _matches(name: str, arrays: Iterable[str]) -> list[str]:
    """Those of `arrays` that are called `name`, with or without their folder."""
    return [array for array in arrays if array == name] or [array for array in arrays if _parts(array)[-1] == name]


def _with_keys(recording: Recording, entries: Sequence[tuple[str | None, str]]) -> dict[str, str]:
    """Key -> source. An entry without a key is called by the last part of its path; where several would be called the
    same, by as many parts as tell them apart. DataError if that is not possible.
    """
    arrays = [parse_selection(source).array for _, source in entries]
    keys = [_key(array, 1) if key is None else key for (key, _), array in zip(entries, arrays, strict=True)]
    inferred = [i for i, (key, _) in enumerate(entries) if key is None and keys.count(keys[i]) > 1]
    for n_parts in range(2, 1 + max((len(_parts(array)) for array in arrays), default=0)):
        for i in [i for i in inferred if keys.count(keys[i]) > 1]:
            keys[i] = _key(arrays[i], n_parts)
    repeated = next((key for key in keys if keys.count(key) > 1), None)
    if repeated is not None:
        sources = [source for key, (_, source) in zip(keys, entries, strict=True) if key == repeated]
        raise DataError(
            f"'{recording.path}': {' and '.join(sources)} have the same key '{repeated}'.",
            f"Give each its own: --keys {','.join(f'{repeated}_{i}={source}' for i, source in enumerate(sources, 1))}.",
        )
    return dict(zip(keys, (source for _, source in entries), strict=True))


def _key(name: str, n_parts: int) -> str:
    """A key for the array `name`: its last `n_parts` parts, without characters that a key cannot have."""
    key = re.sub(r"[^A-Za-z0-9_-]", "_", "_".join(_parts(name)[-n_parts:])).strip("_-")
    return f"{key}_obs" if key in RESERVED_KEYS else key


def _parts(name: str) -> list[str]:
    """The parts of the path of an array."""
    return re.split(r"[/.]", name)


def _is_observable(step: StepArray) -> bool:
    is_vector = step.is_numeric and Selection("", slice(None)).width(step.shape) <= MAX_VECTOR
    return step.image_shape is not None or is_vector


def _names(source: str, recording: Recording) -> tuple[str, ...]:
    """Names of the selected elements; none if they are not known for all of them."""
    selection = parse_selection(source)
    step = recording.arrays[selection.array]
    full = Selection(selection.array, slice(None)).width(step.shape)
    return step.names[selection.elements] if len(step.names) == full else ()


def _width(source: str, recording: Recording) -> int:
    selection = parse_selection(source)
    step = recording.arrays[selection.array]
    width = selection.width(step.shape)
    if not step.is_numeric or not width:
        raise DataError(f"'{recording.path}': '{source}' has {width} numbers of type {step.dtype} per step.")
    return width


def read_schema(path: Path, recording: Recording) -> Schema:
    """The schema in a JSON file, which must fit the arrays of `recording`; ConfigError or DataError names the fault."""
    hint = "`ddp inspect RECORDING --json` prints one that can be edited."
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no file '{path}'.", hint) from None
    except (OSError, ValueError, RecursionError) as e:
        raise ConfigError(f"'{path}' is not valid JSON: {e}.", hint) from None
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' does not contain a JSON object.", hint)
    schema = Schema(**content.get("schema", content))
    _check_rate(recording, schema.rate)
    for key, camera in schema.cameras.items():
        source = _find(recording, camera.source or key)
        shape = recording.arrays[source].image_shape
        if shape is None or shape[2] != camera.channels or (camera.recorded and shape[:2] != camera.recorded):
            raise DataError(
                f"'{path}': {key} has shape {camera.recorded_shape}, but {source} holds {shape or 'no images'}.", hint
            )
        original = Camera(height=shape[0], width=shape[1], channels=camera.channels, source=source)
        schema.cameras[key] = original.resized(camera.height, camera.width, camera.fit)
    for key, vector in schema.vectors.items():
        source = _check_width(recording, vector.source or key, vector.width, f"'{path}': {key}")
        schema.vectors[key] = vector.model_copy(update={"source": source})
    source = schema.action_source or recording.action
    source = _check_width(recording, source, schema.action_dim, f"'{path}': the action")
    return schema.model_copy(update={"action_source": source})


def _check_width(recording: Recording, source: str, width: int, what: str) -> str:
    """The full name of `source`, which must have `width` numbers per step."""
    source = _find(recording, source)
    actual = _width(source, recording)
    if actual != width:
        raise DataError(f"{what} has width {width}, but {source} has {actual}.", "Correct one of them.")
    return source
