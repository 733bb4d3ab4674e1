"""Observations that a file of raw demonstrations holds: which can be copied into a store, and their values.

Images are copied if that is exact: (height, width, 3) or (3, height, width) per step, uint8, or other numbers that are
0..255 or 0..1 in steps of 1/255. Everything else is rendered in the simulator.

Shapes: n steps of a demo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.hdf5 import report_read_errors
from ddp_cli.data.invariants import check_quaternions
from ddp_cli.errors import DataError

ROUNDING_ERROR, ROUNDING_ERROR_FLOAT16 = 0.01, 0.1  # of 255 steps


def reason_unusable(demos: DemoFile, key: str, names: Sequence[str]) -> str:
    """Why the recorded observation `key` of the demos `names` cannot be copied; empty if it can."""
    is_image = key in demos.task.schema.cameras
    for name in names:
        if not demos.has(name, f"obs/{key}"):
            return f"{name} has no obs/{key}"
        array = demos.array(name, f"obs/{key}")
        shapes = _image_shapes(demos, key) if is_image else [(demos.task.vectors("state")[key],)]
        if array.shape[1:] not in shapes:
            return f"obs/{key} of {name} has shape {array.shape[1:]}, expected {shapes[0]}"
        if is_image and array.dtype != np.uint8:
            try:
                to_uint8(_read(demos, name, key, slice(0, 1)), "its first image")
            except DataError as e:
                return f"obs/{key} of {name} is {array.dtype}: {e.message.rstrip('.')}"
    return ""


def read_observations(demos: DemoFile, name: str, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The observations `keys` of a demo by key: images (n, height, width, 3) uint8, others (n, width) float32.

    DataError if the number of steps is wrong, or values are not finite or cannot be copied exactly.
    """
    return {key: _read_observation(demos, name, key) for key in keys}


def check_observations(demos: DemoFile, name: str, keys: Sequence[str]) -> None:
    """DataError if `read_observations` would fail. Images that are uint8 already are not read."""
    for key in keys:
        if demos.array(name, f"obs/{key}").dtype == np.uint8:
            _check_length(demos, name, key)
        else:
            _read_observation(demos, name, key)


def read_step(demos: DemoFile, name: str, keys: Sequence[str], step: int) -> dict[str, NDArray[Any]]:
    """The observations `keys` of one step of a demo, (1, ...) each."""
    rows = slice(step, step + 1)
    return {key: _convert(demos, _read(demos, name, key, rows), name, key) for key in keys}


def _read_observation(demos: DemoFile, name: str, key: str) -> NDArray[Any]:
    _check_length(demos, name, key)
    return _convert(demos, _read(demos, name, key, slice(0, demos.n_steps(name))), name, key)


def _read(demos: DemoFile, name: str, key: str, rows: slice) -> NDArray[Any]:
    with report_read_errors(demos.path, f"{name}/obs/{key}"):
        values = np.asarray(demos.array(name, f"obs/{key}")[rows])
    is_image = key in demos.task.schema.cameras
    return np.moveaxis(values, 1, -1) if is_image and values.shape[1:] == _image_shapes(demos, key)[1] else values


def _image_shapes(demos: DemoFile, key: str) -> list[tuple[int, ...]]:
    """Shapes of an image with its channels last, and first."""
    height, width, channels = demos.task.schema.cameras[key].shape
    return [(height, width, channels), (channels, height, width)]


def _check_length(demos: DemoFile, name: str, key: str) -> None:
    n_rows, n_actions = len(demos.array(name, f"obs/{key}")), demos.n_steps(name)
    if n_rows not in (n_actions, len(demos.array(name, "actions"))):
        raise DataError(
            f"'{demos.path}' {name}: obs/{key} has {n_rows} steps for {n_actions} actions.",
            "Remove this demo, or render its observations again with --rerender.",
        )


def _convert(demos: DemoFile, values: NDArray[Any], name: str, key: str) -> NDArray[Any]:
    location = f"'{demos.path}' {name}: obs/{key}"
    if key in demos.task.schema.cameras:
        return np.ascontiguousarray(to_uint8(values, location))
    if not np.isfinite(values).all():
        raise DataError(f"{location} is not finite.", "Compute it again with --rerender.")
    if key.endswith("quat"):
        check_quaternions(values, location)
    return values.astype(np.float32)


def to_uint8(images: NDArray[Any], location: str) -> NDArray[np.uint8]:
    """Images of any numeric type as uint8, if that is exact; otherwise DataError."""
    if images.dtype == np.uint8:
        return images
    hint = "Render the images again with --rerender."
    values = images.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{location} is not finite.", hint)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low < 0 or high > 255:
        raise DataError(f"{location} has values from {low:g} to {high:g}, expected 0 to 255 or 0 to 1.", hint)
    if high == 1 and not (values % 1).any():
        raise DataError(f"{location} has only the values 0 and 1: their range, 0 to 1 or 0 to 255, is ambiguous.", hint)
    scaled = values * 255 if high <= 1 else values
    rounded = scaled.round()
    tolerance = ROUNDING_ERROR_FLOAT16 if images.dtype == np.float16 else ROUNDING_ERROR
    if np.abs(scaled - rounded).max(initial=0) > tolerance:
        raise DataError(f"{location} has values between the 256 levels of an image.", hint)
    return rounded.astype(np.uint8)
