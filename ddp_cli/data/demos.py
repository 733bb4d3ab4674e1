"""Raw demonstrations in and out (HDF5, robomimic's raw layout); the only user of h5py.

data                    attrs: env_args (JSON), total [steps], task, attempts, failures, ...
data/demo_i/states      (n, S) float64  state *before* action i: time, qpos, qvel
data/demo_i/actions     (n, 7) float64, as executed: replaying them gives the states
data/demo_i/intended    (n, 7) float64, optional: what the demonstrator asked for where it was disturbed
data/demo_i             attrs: num_samples, seed, model (name below `models`)
models/<hash>           zlib-compressed XML of the model; one where all demos share it
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DataError, WorkerError
from ddp_cli.tasks import ACTION_DIM, Task, task_of_env

FORMAT = 1
SLACK = 1 << 16  # [bytes] of HDF5's own around a demo


@dataclass(frozen=True)
class Demo:
    """One recorded episode: `states` (n, S) and executed `actions` (n, 7), float64; `xml` may be empty.

    `intended` (n, 7): what a disturbed demonstrator wanted to do, which is what a policy should learn.
    """

    states: NDArray[np.float64]
    actions: NDArray[np.float64]
    xml: str = ""
    seed: int = -1
    intended: NDArray[np.float64] | None = None

    @property
    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """What is recorded of every step, by the name it has in a file."""
        found = {"states": self.states, "actions": self.actions, "intended": self.intended}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def lesson(self) -> NDArray[np.float64]:
        """The actions (n, 7) to learn: as intended, where that is known, otherwise as executed."""
        return self.actions if self.intended is None else self.intended


class DemoWriter:
    """Appends demos to PATH.partial and names it PATH when finished.

    An interrupted file is picked up where it ended when `identity` (everything that decides the
    content) is the same; otherwise it is begun anew.
    """

    def __init__(self, path: Path, env_args: dict[str, Any], identity: dict[str, Any]) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(identity, sort_keys=True)
        self._file = self._reopen(text)
        if self._file is None:
            self._file = h5py.File(self.partial, "w")
            data = self._file.create_group("data")
            self._file.create_group("models")
            data.attrs["env_args"] = json.dumps(env_args, sort_keys=True)
            data.attrs["identity"] = text
            data.attrs["format"] = FORMAT
            self._count({"demos": 0, "attempts": 0, "failures": 0, "total": 0})
            self._file.flush()

    def _reopen(self, identity: str) -> h5py.File | None:
        try:
            file = h5py.File(self.partial, "r+")
            if file["data"].attrs["identity"] == identity:
                extra = f"demo_{json.loads(file['data'].attrs['counts'])['demos']}"
                if extra in file["data"]:  # cut off between the arrays and the count
                    del file["data"][extra]
                return file
            file.close()
        except (OSError, KeyError, RuntimeError):
            pass  # absent, or damaged by the interruption
        return None

    @property
    def counts(self) -> dict[str, int]:
        """`demos` in the file, `attempts` made for them, `failures` among these, `total` steps."""
        return dict(json.loads(self._data.attrs["counts"]))

    def _count(self, counts: dict[str, int]) -> None:
        self._data.attrs["counts"] = json.dumps(counts)  # one attribute: all of them, or none

    @property
    def _data(self) -> h5py.Group:
        assert self._file is not None
        return self._file["data"]

    def append(self, demo: Demo | None) -> None:
        """Counts one attempt; adds its demo, or notes a failure for None."""
        data, counts = self._data, self.counts
        if demo is not None:
            self._reserve(sum(array.nbytes for array in demo.arrays.values()) + len(demo.xml) + SLACK)
            group = data.create_group(f"demo_{counts['demos']}")
            for name, array in demo.arrays.items():
                group.create_dataset(name, data=array, compression="gzip", compression_opts=9, shuffle=True)
            group.attrs["num_samples"] = len(demo.actions)
            group.attrs["seed"] = demo.seed
            group.attrs["model"] = self._model(demo.xml)
            counts["demos"] += 1
            counts["total"] += len(demo.actions)
        else:
            counts["failures"] += 1
        counts["attempts"] += 1
        self._count(counts)
        data.file.flush()

    def _reserve(self, size: int) -> None:
        """OSError unless the disk takes `size` more bytes. HDF5 itself does not survive a failed write."""
        if hasattr(os, "posix_fallocate"):
            with self.partial.open("rb+") as f:
                end = f.seek(0, os.SEEK_END)
                try:
                    os.posix_fallocate(f.fileno(), end, size)
                finally:
                    f.truncate(end)

    def _model(self, xml: str) -> str:
        name = hashlib.sha256(xml.encode()).hexdigest()[:16]
        models = self._data.file["models"]
        if name not in models:
            models.create_dataset(name, data=np.frombuffer(zlib.compress(xml.encode(), 9), np.uint8))
        return name

    def finish(self) -> None:
        """Makes the file durable under its final name."""
        assert self._file is not None
        self._data.attrs.update(self.counts)
        self._file.close()
        self._file = None
        with self.partial.open("rb") as f:
            os.fsync(f.fileno())
        self.partial.replace(self.path)

    def __enter__(self) -> DemoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            if kind is not None and not issubclass(kind, KeyboardInterrupt | WorkerError):
                self.partial.unlink(missing_ok=True)


class DemoFile:
    """A file of raw demonstrations, checked as it is read. Every fault is a DataError that names it.

    Its task is the built-in one of its environment, unless another `task` of that environment is given.
    """

    def __init__(self, path: Path, task: Task | None = None) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(
                f"no file '{path}'.", "Name an HDF5 file of raw demonstrations, or make one with `ddp collect`."
            )
        try:
            self._file = h5py.File(path, "r")
        except OSError as e:
            whole = path.open("rb").read(8) == b"\x89HDF\r\n\x1a\n"
            what = "is a damaged or truncated HDF5 file" if whole else "is not an HDF5 file"
            raise DataError(f"'{path}' {what}.", "Copy or record it again (`ddp collect`).") from e
        data = self._file.get("data")
        if not isinstance(data, h5py.Group):
            raise DataError(
                f"'{path}' has no group 'data'.", "Expected robomimic's raw layout: data/demo_0/{states,actions}."
            )
        self._data = data
        self.names = sorted((n for n in data if n.startswith("demo_") and n[5:].isdecimal()), key=lambda n: int(n[5:]))
        if not self.names:
            raise DataError(f"'{path}' has no demonstrations (data/demo_0, ...).", "Record some with `ddp collect`.")
        self.env_args = self._env_args()
        env_name = self.env_args["env_name"]
        self.task: Task = task or task_of_env(env_name)
        if self.task.env_name != env_name:
            raise DataError(
                f"'{path}' was recorded in {env_name}, the task '{self.task.name}' is of {self.task.env_name}.",
                "Name the task of this file with --task.",
            )

    def _env_args(self) -> dict[str, Any]:
        try:
            args = json.loads(self._data.attrs["env_args"])
            if isinstance(args["env_name"], str):
                return dict(args)
        except (KeyError, TypeError, ValueError):
            pass
        raise DataError(
            f"'{self.path}' does not say its environment (attribute env_args of 'data').",
            'Expected JSON with "env_name".',
        )

    def lengths(self) -> list[int]:
        """Steps of each demo, in order; checks that each has its arrays."""
        return [len(self._array(name, "actions")) for name in self.names]

    def sha256(self) -> str:
        """Hash of the whole file, so that a store can name its source exactly."""
        with self.path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    def read(self, name: str) -> Demo:
        """The demo called `name`, checked: sizes of the task, finite, not empty."""
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
                "Only single-arm delta actions are read.",
            )
        group = self._data[name]
        intended = self._read(name, "intended") if "intended" in group else None
        if intended is not None and intended.shape != actions.shape:
            raise DataError(
                f"{where}: intended has shape {intended.shape}, actions {actions.shape}.", "Record this demo again."
            )
        demo = Demo(states, actions, self._xml(group), int(group.attrs.get("seed", -1)), intended)
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
        return demo

    def _array(self, name: str, key: str) -> h5py.Dataset:
        array = self._data[name].get(key) if isinstance(self._data[name], h5py.Group) else None
        if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiu" or array.ndim < 1:
            raise DataError(f"'{self.path}' {name} has no {key}.", f"Expected a numeric array data/{name}/{key}.")
        return array

    def _read(self, name: str, key: str) -> NDArray[np.float64]:
        try:
            return np.asarray(self._array(name, key)[:], dtype=np.float64)
        except OSError as e:
            raise DataError(f"'{self.path}' {name}/{key} is damaged.", "Copy or record the file again.") from e

    def _xml(self, group: h5py.Group) -> str:
        if "model_file" in group.attrs:  # robomimic and robosuite keep the text beside each demo
            return str(group.attrs["model_file"])
        if "model" in group.attrs:
            try:
                return zlib.decompress(self._file["models"][group.attrs["model"]][:].tobytes()).decode()
            except (KeyError, zlib.error, UnicodeDecodeError) as e:
                raise DataError(
                    f"'{self.path}' {group.name}: its model is missing or damaged.", "Copy the file again."
                ) from e
        return ""

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
