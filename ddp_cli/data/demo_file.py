"""Reads raw demonstrations (HDF5): files of `ddp collect`, of robosuite's collector and of robomimic.

data                    attrs: env_args (JSON), or env, env_info and repository_version; see env_metadata.py
data/demo_i/states      (n, S) float64  simulator state *before* action i: time, qpos, qvel
data/demo_i/actions     (n, 7) float64  executed actions; replaying them from the first state reproduces the states
data/demo_i/intended    (n, 7) float64  optional: the demonstrator's actions before disturbances were added
data/demo_i/obs/<key>   (n, ...)        optional: observation before each action
data/demo_i             attrs: num_samples, seed, and the model: its XML, or the name of a file in the folder `models`
                        beside this file (both model_file), or the name of an entry of the group `models` (model)
models/<hash>           zlib-compressed XML of a model, shared by all demos that use it
mask/<key>              a filter key: names of a subset of the demos

Shapes: n steps of a demo, S width of the simulator state.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.demo import Demo
from ddp_cli.data.env_metadata import RecordingInfo, read_recording_info
from ddp_cli.errors import ConfigError, DataError, close_match
from ddp_cli.tasks import ACTION_DIM, IMAGE_SIZE, Task, task_of_env

MAX_ARRAY_BYTES = 1 << 32  # the header of a damaged file may declare any shape
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, zlib.error)
"""Exceptions that reading a damaged file raises."""

COPY_AGAIN = "Copy the file again."


class DemoFile:
    """A file of raw demonstrations, validated as it is read. Every fault is a DataError that names its location.

    `task` defaults to the built-in one of the recorded environment; another must use the same environment.
    `filter_key` selects the demos listed in mask/<filter_key>. `allow_unknown_env` accepts environments without a task.
    """

    def __init__(
        self, path: Path, task: Task | None = None, filter_key: str | None = None, allow_unknown_env: bool = False
    ) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(
                f"no file '{path}'.", "Name an HDF5 file of raw demonstrations, or record one with `ddp collect`."
            )
        try:
            self._file = h5py.File(path, "r")
        except HDF5_ERRORS as e:
            has_signature = path.open("rb").read(8) == b"\x89HDF\r\n\x1a\n"
            fault = "is a damaged or truncated HDF5 file" if has_signature else "is not an HDF5 file"
            raise DataError(f"'{path}' {fault}.", "Copy or record it again (`ddp collect`).") from e
        try:
            self._open(task, filter_key, allow_unknown_env)
        except BaseException:
            self.close()
            raise

    def _open(self, task: Task | None, filter_key: str | None, allow_unknown_env: bool) -> None:
        with self._report_damage("the group 'data'"):
            data = self._file.get("data")
            if not isinstance(data, h5py.Group):
                raise DataError(
                    f"'{self.path}' has no group 'data'.",
                    "Expected robomimic's raw layout: data/demo_0/{states,actions}.",
                )
            self._data = data
            self.names = _demo_names(data)
            self.attrs: dict[str, Any] = {
                k: v.item() if isinstance(v, np.generic) else v for k, v in data.attrs.items()
            }
        if not self.names:
            raise DataError(
                f"'{self.path}' has no demonstrations (data/demo_0, ...).", "Record some with `ddp collect`."
            )
        if filter_key is not None:
            self.names = self._filtered_names(filter_key)
        self.info: RecordingInfo = read_recording_info(self.attrs, f"'{self.path}'")
        self.task: Task = task or self._find_task(allow_unknown_env)
        if self.task.env_name != self.info.env_name:
            raise DataError(
                f"'{self.path}' was recorded in {self.info.env_name}, "
                f"but the task '{self.task.name}' uses {self.task.env_name}.",
                "Name the task of this file with --task.",
            )

    def _find_task(self, allow_unknown_env: bool) -> Task:
        try:
            return task_of_env(self.info.env_name)
        except ConfigError as e:
            if allow_unknown_env:
                return Task(name="none", env_name=self.info.env_name, model_varies=False)
            raise DataError(f"'{self.path}': {e.message}", e.hint) from e

    @contextmanager
    def _report_damage(self, location: str) -> Iterator[None]:
        """Re-raises exceptions of reading damaged data as a DataError that names `location`."""
        try:
            yield
        except DataError:
            raise
        except HDF5_ERRORS as e:
            raise DataError(f"'{self.path}': {location} is damaged.", "Copy or record the file again.") from e

    # -- selecting demos ----------------------------------------------------------------------------

    @property
    def filter_keys(self) -> list[str]:
        """Filter keys of the file (for example robomimic's train and valid)."""
        with self._report_damage("the group 'mask'"):
            mask = self._file.get("mask")
            return sorted(mask) if isinstance(mask, h5py.Group) else []

    def _filtered_names(self, filter_key: str) -> list[str]:
        if filter_key not in self.filter_keys:
            raise DataError(
                f"'{self.path}' has no filter key '{filter_key}'{close_match(filter_key, self.filter_keys)}",
                f"Valid: {', '.join(self.filter_keys)}." if self.filter_keys else "It has none: leave --filter out.",
            )
        with self._report_damage(f"mask/{filter_key}"):
            listed = {x.decode() if isinstance(x, bytes) else str(x) for x in self._file["mask"][filter_key][:]}
        missing = sorted(listed - set(self.names))
        if missing or not listed:
            fault = f"lists {missing[0]}, which does not exist" if missing else "lists no demo"
            raise DataError(
                f"'{self.path}': the filter key '{filter_key}' {fault}.", "Choose another, or leave --filter out."
            )
        return [name for name in self.names if name in listed]

    def sha256(self) -> str:
        """Hash of the whole file, by which a store identifies its source."""
        with self.path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    # -- reading a demo -----------------------------------------------------------------------------

    def read(self, name: str, obs_keys: tuple[str, ...] = ()) -> Demo:
        """The demo `name` with the recorded observations `obs_keys`.

        DataError where shapes do not fit the task, values are not finite, or a model is missing that the task needs.
        """
        states, actions = self._read(name, "states"), self._read(name, "actions")
        self._check_shapes(name, states, actions)
        location = f"'{self.path}' {name}"
        intended = self._read(name, "intended") if self._has(name, "intended") else None
        if intended is not None and intended.shape != actions.shape:
            raise DataError(
                f"{location}: intended has shape {intended.shape}, but actions {actions.shape}.",
                "Record this demo again.",
            )
        with self._report_damage(name):
            seed = self._data[name].attrs.get("seed", -1)
            seed = int(seed) if isinstance(seed, int | np.integer) else -1
            demo = Demo(states, actions, self._read_xml(name), seed, intended, name)
        for key, array in demo.arrays.items():
            non_finite = np.argwhere(~np.isfinite(array))
            if len(non_finite):
                step, column = non_finite[0]
                raise DataError(
                    f"{location}: {key}[{step}, {column}] is {array[step, column]}.",
                    "Remove this demo or record it again.",
                )
        if self.task.model_varies and not self.task.is_built_in and not demo.xml:
            raise DataError(
                f"{location} has no recorded model (model_file), but the model of '{self.task.name}' varies.",
                'If episodes differ only in their states, set "model_varies": false in the task file.',
            )
        for key in obs_keys:
            demo.obs[key] = self._read_observation(name, key, len(actions))
        return demo

    def _check_shapes(self, name: str, states: NDArray[np.float64], actions: NDArray[np.float64]) -> None:
        location = f"'{self.path}' {name}"
        if len(actions) == 0 or len(states) != len(actions):
            raise DataError(
                f"{location}: {len(states)} states for {len(actions)} actions.",
                "Each action needs the state before it.",
            )
        state_dim, reference = self.task.state_dim, f"the task '{self.task.name}'"
        if state_dim is None:  # the simulator will check the first demo itself
            state_dim, reference = self._array(self.names[0], "states").shape[-1], self.names[0]
        if states.ndim != 2 or states.shape[1] != state_dim:
            raise DataError(
                f"{location}: states have {states.shape[-1]} values, those of {reference} have {state_dim}.",
                "The recording may be of another task than env_args says, or of another robosuite version.",
            )
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM:
            raise DataError(
                f"{location}: actions have shape {actions.shape}, expected (n, {ACTION_DIM}).",
                "Only actions of a single arm are supported: position, axis-angle, gripper.",
            )

    def observation_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Recorded observations of a demo: key -> shape."""
        if not self._has(name, "obs"):
            return {}
        with self._report_damage(f"{name}/obs"):
            group = self._data[name]["obs"]
            return {key: tuple(array.shape) for key, array in group.items() if isinstance(array, h5py.Dataset)}

    def reason_unusable(self, key: str, names: list[str]) -> str:
        """Why the recorded observation `key` of the demos `names` cannot be used; empty if it can."""
        is_image = key in self.task.cameras
        shape = (IMAGE_SIZE, IMAGE_SIZE, 3) if is_image else (self.task.vectors("state")[key],)
        for name in names:
            if not self._has(name, f"obs/{key}"):
                return f"{name} has no obs/{key}"
            array = self._array(name, f"obs/{key}")
            if array.shape[1:] != shape or (is_image and array.dtype != np.uint8):
                expected = f"{shape} uint8" if is_image else f"{shape}"
                return f"obs/{key} of {name} is {array.shape[1:]} {array.dtype}, expected {expected}"
        return ""

    def _read_observation(self, name: str, key: str, length: int) -> NDArray[Any]:
        location = f"'{self.path}' {name}: obs/{key}"
        with self._report_damage(f"{name}/obs/{key}"):
            dataset = self._array(name, f"obs/{key}")
            if len(dataset) != length:
                raise DataError(
                    f"{location} has {len(dataset)} steps for {length} actions.",
                    "Remove this demo, or render its observations again with --rerender.",
                )
            values = np.asarray(dataset[:])
        if values.dtype != np.uint8:
            values = values.astype(np.float32)
            if not np.isfinite(values).all():
                raise DataError(f"{location} is not finite.", "Compute it again with --rerender.")
        return values

    def _has(self, name: str, key: str) -> bool:
        with self._report_damage(name):
            demo = self._data[name]
            return isinstance(demo, h5py.Group) and key in demo

    def _array(self, name: str, key: str) -> h5py.Dataset:
        with self._report_damage(f"{name}/{key}"):
            demo = self._data[name]
            array = demo.get(key) if isinstance(demo, h5py.Group) else None
            if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiu" or array.ndim < 1:
                raise DataError(f"'{self.path}' {name} has no {key}.", f"Expected a numeric array data/{name}/{key}.")
            if array.nbytes > MAX_ARRAY_BYTES:
                raise DataError(f"'{self.path}' {name}: {key} declares a shape of {array.shape}.", COPY_AGAIN)
            return array

    def _read(self, name: str, key: str) -> NDArray[np.float64]:
        with self._report_damage(f"{name}/{key}"):
            return np.asarray(self._array(name, key)[:], dtype=np.float64)

    def _read_xml(self, name: str) -> str:
        attrs = self._data[name].attrs
        if "model_file" in attrs:
            text = str(attrs["model_file"])
            return text if text.lstrip().startswith("<") else self._read_model_file(text)
        if "model" in attrs:
            try:
                return zlib.decompress(self._file["models"][attrs["model"]][:].tobytes()).decode()
            except HDF5_ERRORS as e:
                raise DataError(f"'{self.path}' {name}: its model is missing or damaged.", COPY_AGAIN) from e
        return ""

    def _read_model_file(self, name: str) -> str:
        """A model in the folder `models` beside the file, as written by robosuite 1.0; empty if it is missing."""
        path = self.path.parent / "models" / Path(name).name
        return path.read_text(errors="replace") if path.is_file() else ""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> DemoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Demo]:
        return (self.read(name) for name in self.names)


def _demo_names(data: h5py.Group) -> list[str]:
    """demo_0, demo_1, ..., demo_10: in numeric order; numbers may have gaps."""
    return sorted((n for n in data if n.startswith("demo_") and n[5:].isdecimal()), key=lambda n: int(n[5:]))
