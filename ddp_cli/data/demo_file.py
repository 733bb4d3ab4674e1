"""Raw demonstrations in (HDF5): those of `ddp collect`, of robosuite's collector, and robomimic's files.

data                    attrs: env_args (JSON), or env, env_info and repository_version; see origin.py
data/demo_i/states      (n, S) float64  state *before* action i: time, qpos, qvel
data/demo_i/actions     (n, 7) float64, as executed: replaying them gives the states
data/demo_i/intended    (n, 7) float64, optional: what the demonstrator asked for where it was disturbed
data/demo_i/obs/<key>   (n, ...) optional: what was seen before each action
data/demo_i             attrs: num_samples, seed, and the model: its XML, or the name of a file in the folder `models`
                        beside (both model_file), or the name of an entry of the group `models` (model)
models/<hash>           zlib-compressed XML of a model; one where all demos share it
mask/<key>              names of some demos: a filter
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.env_metadata import RecordingInfo, read_recording_info
from ddp_cli.errors import ConfigError, DataError, close_match
from ddp_cli.tasks import ACTION_DIM, IMAGE_SIZE, Task, task_of_env

FORMAT = 1
LARGEST = 1 << 32  # [bytes] of an array: a damaged file may claim any size
PROBLEMS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, zlib.error)
"""What h5py raises where a file is damaged."""


@dataclass(frozen=True)
class Demo:
    """One recorded episode: `states` (n, S) and executed `actions` (n, 7), float64; `xml` may be empty.

    `intended` (n, 7): what a disturbed demonstrator wanted to do, which is what a policy should learn.
    `obs`: recorded observations (n, ...), where they were asked for.
    """

    states: NDArray[np.float64]
    actions: NDArray[np.float64]
    xml: str = ""
    seed: int = -1
    intended: NDArray[np.float64] | None = None
    name: str = ""
    obs: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """What is recorded of every step, by the name it has in a file."""
        found = {"states": self.states, "actions": self.actions, "intended": self.intended}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def target_actions(self) -> NDArray[np.float64]:
        """The actions (n, 7) to learn: as intended, where that is known, otherwise as executed."""
        return self.actions if self.intended is None else self.intended


class DemoFile:
    """A file of raw demonstrations, checked as it is read. Every fault is a DataError that names it.

    Its task is the built-in one of its environment, unless another `task` of that environment is given. With
    `subset`, only the demos that this filter names. With `any_task`, an environment that no task is of will do.
    """

    def __init__(self, path: Path, task: Task | None = None, subset: str | None = None, any_task: bool = False) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(
                f"no file '{path}'.", "Name an HDF5 file of raw demonstrations, or make one with `ddp collect`."
            )
        try:
            self._file = h5py.File(path, "r")
        except PROBLEMS as e:
            whole = path.open("rb").read(8) == b"\x89HDF\r\n\x1a\n"
            what = "is a damaged or truncated HDF5 file" if whole else "is not an HDF5 file"
            raise DataError(f"'{path}' {what}.", "Copy or record it again (`ddp collect`).") from e
        try:
            self._open(task, subset, any_task)
        except BaseException:
            self.close()
            raise

    def _open(self, task: Task | None, subset: str | None, any_task: bool) -> None:
        with self._blaming("the group 'data'"):
            data = self._file.get("data")
            if not isinstance(data, h5py.Group):
                raise DataError(
                    f"'{self.path}' has no group 'data'.",
                    "Expected robomimic's raw layout: data/demo_0/{states,actions}.",
                )
            self._data = data
            self.names = _in_order(data)
            attrs = self.attrs()
        if not self.names:
            raise DataError(
                f"'{self.path}' has no demonstrations (data/demo_0, ...).", "Record some with `ddp collect`."
            )
        if subset is not None:
            self.names = self._filtered(subset)
        self.origin: RecordingInfo = read_recording_info(attrs, f"'{self.path}'")
        self.task: Task = task or self._known_task(any_task)
        if self.task.env_name != self.origin.env_name:
            raise DataError(
                f"'{self.path}' was recorded in {self.origin.env_name}, "
                f"the task '{self.task.name}' is of {self.task.env_name}.",
                "Name the task of this file with --task.",
            )

    def _known_task(self, any_task: bool) -> Task:
        try:
            return task_of_env(self.origin.env_name)
        except ConfigError as e:
            if any_task:
                return Task("none", self.origin.env_name, model_varies=False)
            raise DataError(f"'{self.path}': {e.message}", e.hint) from e

    @contextmanager
    def _blaming(self, what: str) -> Iterator[None]:
        """Turns h5py's errors about damage into a DataError about `what`."""
        try:
            yield
        except DataError:
            raise
        except PROBLEMS as e:
            raise DataError(f"'{self.path}': {what} is damaged.", "Copy or record the file again.") from e

    # -- which demos ------------------------------------------------------------------------------

    @property
    def filters(self) -> list[str]:
        """Names of the filters in the file (robomimic's train and valid, for two)."""
        with self._blaming("the group 'mask'"):
            mask = self._file.get("mask")
            return sorted(mask) if isinstance(mask, h5py.Group) else []

    def _filtered(self, subset: str) -> list[str]:
        if subset not in self.filters:
            raise DataError(
                f"'{self.path}' has no filter '{subset}'{close_match(subset, self.filters)}",
                f"Valid: {', '.join(self.filters)}." if self.filters else "It has none: leave --filter out.",
            )
        with self._blaming(f"mask/{subset}"):
            wanted = {x.decode() if isinstance(x, bytes) else str(x) for x in self._file["mask"][subset][:]}
        absent = sorted(wanted - set(self.names))
        if absent or not wanted:
            what = f"names {absent[0]}, which is not there" if absent else "names no demo"
            raise DataError(f"'{self.path}': the filter '{subset}' {what}.", "Name another, or leave --filter out.")
        return [name for name in self.names if name in wanted]

    def sha256(self) -> str:
        """Hash of the whole file, so that a store can name its source exactly."""
        with self.path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    # -- one demo ---------------------------------------------------------------------------------

    def read(self, name: str, obs_keys: tuple[str, ...] = ()) -> Demo:
        """The demo called `name`, checked: sizes of the task, finite, not empty; with recorded observations."""
        states, actions = self._read(name, "states"), self._read(name, "actions")
        where = f"'{self.path}' {name}"
        if len(actions) == 0 or len(states) != len(actions):
            raise DataError(
                f"{where}: {len(states)} states for {len(actions)} actions.", "Each action needs the state before it."
            )
        expected, whose = self.task.state_dim, f"the task '{self.task.name}' has"
        if expected is None:  # the simulator will see if it has the right one
            expected, whose = self._array(self.names[0], "states").shape[-1], f"those of {self.names[0]} have"
        if states.ndim != 2 or states.shape[1] != expected:
            raise DataError(
                f"{where}: states have {states.shape[-1]} values, {whose} {expected}.",
                "Is env_args of another task, or the recording of another robosuite?",
            )
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM:
            raise DataError(
                f"{where}: actions have shape {actions.shape}, expected (n, {ACTION_DIM}).",
                "Only the actions of a single arm are read: position, axis-angle, gripper.",
            )
        intended = self._read(name, "intended") if self._has(name, "intended") else None
        if intended is not None and intended.shape != actions.shape:
            raise DataError(
                f"{where}: intended has shape {intended.shape}, actions {actions.shape}.", "Record this demo again."
            )
        with self._blaming(name):
            seed = self._data[name].attrs.get("seed", -1)
            seed = int(seed) if isinstance(seed, int | np.integer) else -1
            demo = Demo(states, actions, self._xml(name), seed, intended, name)
        for key, array in demo.arrays.items():
            bad = np.argwhere(~np.isfinite(array))
            if len(bad):
                raise DataError(
                    f"{where}: {key}[{bad[0][0]}, {bad[0][1]}] is {array[tuple(bad[0])]}.",
                    "Remove this demo or record it again.",
                )
        if self.task.model_varies and not self.task.built_in and not demo.xml:
            raise DataError(
                f"{where} has no recorded model (model_file), and the model of '{self.task.name}' varies.",
                'If only states differ between episodes, say "model_varies": false in the task.',
            )
        for key in obs_keys:
            demo.obs[key] = self._observed(name, key, len(actions))
        return demo

    def observations(self, name: str) -> dict[str, tuple[int, ...]]:
        """Recorded observations of a demo: key -> shape."""
        if not self._has(name, "obs"):
            return {}
        with self._blaming(f"{name}/obs"):
            group = self._data[name]["obs"]
            return {key: tuple(array.shape) for key, array in group.items() if isinstance(array, h5py.Dataset)}

    def reason_unusable(self, key: str, names: list[str]) -> str:
        """Why the observation `key` cannot be taken from the demos `names`; empty if it can."""
        is_picture = key in self.task.cameras
        wanted = (IMAGE_SIZE, IMAGE_SIZE, 3) if is_picture else (self.task.vectors("state")[key],)
        for name in names:
            if not self._has(name, f"obs/{key}"):
                return f"{name} has no obs/{key}"
            array = self._array(name, f"obs/{key}")
            if array.shape[1:] != wanted or (is_picture and array.dtype != np.uint8):
                return f"{name} has obs/{key} of {array.shape[1:]} {array.dtype}, not {wanted}"
        return ""

    def _observed(self, name: str, key: str, length: int) -> NDArray[Any]:
        with self._blaming(f"{name}/obs/{key}"):
            array = self._array(name, f"obs/{key}")
            if len(array) != length:
                raise DataError(
                    f"'{self.path}' {name}: {len(array)} pictures or values of {key} for {length} actions.",
                    "Remove this demo, or make its observations anew with --rerender.",
                )
            found = np.asarray(array[:])
        if found.dtype != np.uint8:
            found = found.astype(np.float32)
            if not np.isfinite(found).all():
                raise DataError(f"'{self.path}' {name}: obs/{key} is not finite.", "Make it anew with --rerender.")
        return found

    def _has(self, name: str, key: str) -> bool:
        with self._blaming(name):
            demo = self._data[name]
            return isinstance(demo, h5py.Group) and key in demo

    def _array(self, name: str, key: str) -> h5py.Dataset:
        with self._blaming(f"{name}/{key}"):
            demo = self._data[name]
            array = demo.get(key) if isinstance(demo, h5py.Group) else None
            if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiu" or array.ndim < 1:
                raise DataError(f"'{self.path}' {name} has no {key}.", f"Expected a numeric array data/{name}/{key}.")
            if array.nbytes > LARGEST:
                raise DataError(f"'{self.path}' {name}: {key} claims a shape of {array.shape}.", "Copy the file again.")
            return array

    def _read(self, name: str, key: str) -> NDArray[np.float64]:
        with self._blaming(f"{name}/{key}"):
            return np.asarray(self._array(name, key)[:], dtype=np.float64)

    def _xml(self, name: str) -> str:
        attrs = self._data[name].attrs
        if "model_file" in attrs:
            text = str(attrs["model_file"])
            return text if text.lstrip().startswith("<") else self._model_beside(text)
        if "model" in attrs:
            try:
                return zlib.decompress(self._file["models"][attrs["model"]][:].tobytes()).decode()
            except PROBLEMS as e:
                raise DataError(
                    f"'{self.path}' {name}: its model is missing or damaged.", "Copy the file again."
                ) from e
        return ""

    def _model_beside(self, name: str) -> str:
        """As robosuite 1.0 keeps it: in the folder `models` beside the file. Empty where that was lost."""
        path = self.path.parent / "models" / Path(name).name
        return path.read_text(errors="replace") if path.is_file() else ""

    def attrs(self) -> dict[str, Any]:
        """Attributes of `data` as plain values."""
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in self._data.attrs.items()}

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> DemoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Demo]:
        return (self.read(name) for name in self.names)


def _in_order(data: h5py.Group) -> list[str]:
    """demo_0, demo_1, ..., demo_10: in the order of their numbers, which may have gaps."""
    return sorted((n for n in data if n.startswith("demo_") and n[5:].isdecimal()), key=lambda n: int(n[5:]))
