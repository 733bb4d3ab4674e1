"""Reads raw demonstrations (HDF5): files of `ddp collect`, of robosuite's collector and of robomimic.

data                    attrs: env_args (JSON), or env, env_info and repository_version; see env_metadata.py
data/NAME/states        (n, S) float64  simulator state *before* action i: time, qpos, qvel; optional, see `has_states`
data/NAME/actions       (n, Da) float64 executed actions; replaying them from the first state reproduces the states
data/NAME/intended      (n, Da) float64 optional: what the demonstrator would have done: actions to imitate
data/NAME/obs/<key>     (n, ...)        optional: observation before each action; see recorded_observations.py
data/NAME               attrs: num_samples, seed, and the model: its XML, or the name of a file in the folder `models`
                        beside this file (both model_file), or the name of an entry of the group `models` (model);
                        optional: policy_steps and success, see demo.py
models/<hash>           zlib-compressed XML of a model, shared by all demos that use it
mask/<key>              a filter key: names of a subset of the demos

NAME is demo_0, demo_1, ... in most files. Arrays may be longer than num_samples: the rows behind it do not count.
Shapes: n steps of a demo, S width of the simulator state.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_selection import find_demo_names, list_filter_keys, select_by_filter
from ddp_cli.data.env_metadata import RecordingInfo, read_recording_info, undescribed_recording
from ddp_cli.data.hdf5 import check_complete, check_links, open_hdf5, reject_single_episode, report_read_errors
from ddp_cli.data.invariants import check_intended, check_time
from ddp_cli.data.recorded_model import read_model_xml
from ddp_cli.data.recorded_task import check_recorded_with, recorded_task, same_environment
from ddp_cli.disk import file_hash
from ddp_cli.errors import ConfigError, DataError, DdpError
from ddp_cli.tasks import Task, robosuite_task


class DemoFile:
    """A file of raw demonstrations, validated as it is read. Every fault is a DataError that names its location.

    `task` defaults to that of the recorded environment; another must use the same environment, and is
    enough where the file does not describe its environment. `filter_key` selects the demos listed in
    mask/<filter_key>. `allow_unknown_env` accepts environments without a task: `task_error` says why there is
    none. `notes` says what was assumed.
    """

    def __init__(
        self, path: Path, task: Task | None = None, filter_key: str | None = None, allow_unknown_env: bool = False
    ) -> None:
        self.path = path
        self.notes: list[str] = []
        self.task_error = ""
        self._complete: set[str] = set()  # arrays whose chunks were counted
        self._file = open_hdf5(path)
        try:
            self._open(task, filter_key, allow_unknown_env)
        except BaseException:
            self.close()
            raise

    def _open(self, task: Task | None, filter_key: str | None, allow_unknown_env: bool) -> None:
        with report_read_errors(self.path, "the group 'data'"):
            data = self._file.get("data")
            if data is None:
                check_links(self.path, self._file, "")
            if not isinstance(data, h5py.Group):
                reject_single_episode(self.path, self._file)
                raise DataError(
                    f"'{self.path}' has no group 'data'.",
                    "Expected robomimic's raw layout: data/demo_0/{states,actions}.",
                )
            check_links(self.path, data, "data")
            self._data = data
            self.names = find_demo_names(data)
            self.attrs: dict[str, Any] = {
                k: v.item() if isinstance(v, np.generic) else v for k, v in data.attrs.items()
            }
        if not self.names:
            raise DataError(
                f"'{self.path}' has no demonstrations (data/demo_0/actions, ...).", "Record some with `ddp collect`."
            )
        if filter_key is not None:
            self.names, missing = select_by_filter(self.path, self._file, self.names, filter_key)
            if missing:  # robomimic copies all of `mask` with the first demos of a file
                self.notes.append(
                    f"the filter key '{filter_key}' lists {len(self.names) + len(missing)} demonstrations, of which "
                    f"the file holds {len(self.names)} ({missing[0]}{', ...' if len(missing) > 1 else ''} missing)"
                )
        self.has_states: bool = any(self._has_array(name, "states") for name in self.names)
        self.info: RecordingInfo = self._read_info(task)
        self.task: Task = task or self._find_task(allow_unknown_env)
        if task:
            check_recorded_with(task, self.info, self.path)

    def _read_info(self, task: Task | None) -> RecordingInfo:
        if task is not None and not {"env_args", "env", "env_info"} & self.attrs.keys():
            self.notes.append(
                "the file does not describe its environment: a Panda with OSC_POSE and delta actions at 20 Hz is "
                "assumed"
            )
            return undescribed_recording(task.robosuite.env_name)
        return read_recording_info(self.attrs, f"'{self.path}'")

    def _find_task(self, allow_unknown_env: bool) -> Task:
        unknown = robosuite_task("none", self.info.env_name, model_varies=False)
        if self.info.incompatibilities():  # for which a conversion is refused
            return same_environment(self.info) or unknown
        try:
            if not self.info.is_robosuite:
                raise ConfigError(f"{self.info.env_name} is not an environment of robosuite.")
            longest = max(self.n_steps(name) for name in self.names)
            task, notes = recorded_task(self.info, self.observation_shapes(self.names[0]), longest)
        except DdpError as e:
            if allow_unknown_env:
                self.task_error = e.message
                return unknown
            raise DataError(f"'{self.path}': {e.message}", e.hint) from e
        self.notes += notes
        return task

    # -- selecting demos ----------------------------------------------------------------------------

    @property
    def filter_keys(self) -> list[str]:
        """Filter keys of the file (for example robomimic's train and valid)."""
        return list_filter_keys(self.path, self._file)

    def sha256(self) -> str:
        """Hash of the whole file, by which a store identifies its source."""
        return file_hash(self.path)

    # -- reading a demo -----------------------------------------------------------------------------

    def read(self, name: str) -> Demo:
        """The demo `name` without observations. Its states have width 0 if the file holds none.

        DataError where shapes do not fit the task, values are not finite, the recorded time jumps, or a model is
        missing that the task needs.
        """
        length = self.n_steps(name)
        actions = self._read(name, "actions", length)
        states = self._read(name, "states", length) if self.has_states else np.zeros((length, 0))
        self._check_shapes(name, states, actions)
        location = f"'{self.path}' {name}"
        intended = self._read(name, "intended", length) if self.has(name, "intended") else None
        if intended is not None and intended.shape != actions.shape:
            raise DataError(
                f"{location}: intended has shape {intended.shape}, but actions {actions.shape}.",
                "Record this demo again.",
            )
        with report_read_errors(self.path, name):
            seed, policy_steps = (self._int_attribute(name, key) for key in ("seed", "policy_steps"))
            success = self._data[name].attrs.get("success")
            xml = read_model_xml(self.path, self._file, name)
            demo = Demo(
                states, actions, xml, -1 if seed is None else seed, intended, name,
                policy_steps=policy_steps, success=bool(success) if isinstance(success, bool | np.bool_) else None,
            )  # fmt: skip
        for key, array in demo.arrays.items():
            non_finite = np.argwhere(~np.isfinite(array))
            if len(non_finite):
                step, column = non_finite[0]
                raise DataError(
                    f"{location}: {key}[{step}, {column}] is {array[step, column]}.",
                    "Remove this demo or record it again.",
                )
        if policy_steps is not None and not 0 <= policy_steps <= length:
            raise DataError(
                f"{location}: policy_steps is {policy_steps}, but there are {length} steps.", "Record this demo again."
            )
        if intended is not None:  # while a policy acts, the demonstrator may want something else
            check_intended(intended[policy_steps or 0 :], actions[policy_steps or 0 :], location)
        if self.has_states:
            check_time(states[:, 0], location, self.task.schema.rate)
        if self.has_states and self.task.robosuite.model_varies and not self.task.is_built_in and not demo.xml:
            raise DataError(
                f"{location} has no recorded model (model_file), but the model of '{self.task.name}' varies.",
                'If episodes differ only in their states, set "model_varies": false in the task file.',
            )
        return demo

    def policy_episodes(self) -> dict[str, bool]:
        """Name of each demo in which a policy acted -> whether it ended with success."""
        with report_read_errors(self.path, "data"):
            attributes = {name: self._data[name].attrs for name in self.names}
            return {name: bool(a.get("success", False)) for name, a in attributes.items() if "policy_steps" in a}

    def _int_attribute(self, name: str, key: str) -> int | None:
        value = self._data[name].attrs.get(key)
        return int(value) if isinstance(value, int | np.integer) else None

    def n_steps(self, name: str) -> int:
        """Steps of a demo: num_samples where it is recorded, otherwise the number of actions."""
        rows = len(self.array(name, "actions"))
        with report_read_errors(self.path, name):
            value = self._data[name].attrs.get("num_samples", rows)
            length = int(value) if np.ndim(value) == 0 and isinstance(value, int | float | np.number) else -1
        if length != value or not 0 < length <= rows:
            raise DataError(
                f"'{self.path}' {name}: num_samples is {value}, but there are {rows} actions.",
                "Remove this demo or record it again.",
            )
        return length

    def n_unused_rows(self, name: str) -> int:
        """Rows of the actions of a demo behind num_samples."""
        return len(self.array(name, "actions")) - self.n_steps(name)

    def _check_shapes(self, name: str, states: NDArray[np.float64], actions: NDArray[np.float64]) -> None:
        location = f"'{self.path}' {name}"
        if len(states) != len(actions):
            raise DataError(
                f"{location}: {len(states)} states for {len(actions)} actions.",
                "Each action needs the state before it.",
            )
        if self.has_states:
            self._check_state_width(name, states)
        width = self.task.schema.action_dim
        if actions.ndim != 2 or actions.shape[1] != width:
            names = ", ".join(part.name for part in self.task.schema.action)
            raise DataError(
                f"{location}: actions have shape {actions.shape}, expected (n, {width}).",
                f"Those of {' and '.join(self.task.robosuite.robots)} are {names}.",
            )

    def _check_state_width(self, name: str, states: NDArray[np.float64]) -> None:
        state_dim, reference = self.task.state_dim, f"the task '{self.task.name}'"
        if state_dim is None or self.info.incompatibilities():  # the simulator checks the first demo itself
            state_dim, reference = self.array(self.names[0], "states").shape[-1], self.names[0]
        if states.ndim != 2 or states.shape[1] != state_dim:
            raise DataError(
                f"'{self.path}' {name}: states have {states.shape[-1]} values, those of {reference} have {state_dim}.",
                "The recording may be of another task than env_args says, or of another robosuite version.",
            )

    def observation_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Recorded observations of a demo: key -> shape."""
        if not self.has(name, "obs"):
            return {}
        with report_read_errors(self.path, f"{name}/obs"):
            group = self._data[name]["obs"]
            return {key: tuple(array.shape) for key, array in group.items() if isinstance(array, h5py.Dataset)}

    def has(self, name: str, key: str) -> bool:
        """Whether the demo `name` has a member `key`."""
        with report_read_errors(self.path, name):
            demo = self._data[name]
            return isinstance(demo, h5py.Group) and key in demo

    def _has_array(self, name: str, key: str) -> bool:
        with report_read_errors(self.path, name):
            return self.has(name, key) and isinstance(self._data[name].get(key), h5py.Dataset)

    def array(self, name: str, key: str) -> h5py.Dataset:
        """The numeric array data/`name`/`key`; DataError if it is missing or parts of it were never written."""
        with report_read_errors(self.path, f"{name}/{key}"):
            demo = self._data[name]
            array = demo.get(key) if isinstance(demo, h5py.Group) else None
            if array is None and isinstance(demo, h5py.Group) and "/" not in key:
                check_links(self.path, demo, f"data/{name}")
            if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiu" or array.ndim < 1:
                raise DataError(f"'{self.path}' {name} has no {key}.", f"Expected a numeric array data/{name}/{key}.")
            if array.name not in self._complete:
                actions = demo.get("actions")
                is_padded = isinstance(actions, h5py.Dataset) and actions.shape[:1] == array.shape[:1]
                rows = self._int_attribute(name, "num_samples") if is_padded else None
                check_complete(self.path, array, f"{name}/{key}", rows)
                self._complete.add(array.name)
            return array

    def _read(self, name: str, key: str, length: int) -> NDArray[np.float64]:
        """The first `length` rows of an array; all rows, for the caller to refuse, if their number is unexpected."""
        with report_read_errors(self.path, f"{name}/{key}"):
            array = self.array(name, key)
            rows = length if len(array) == len(self.array(name, "actions")) else len(array)
            return np.asarray(array[:rows], dtype=np.float64)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> DemoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Demo]:
        return (self.read(name) for name in self.names)
