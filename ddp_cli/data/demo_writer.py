"""Writes raw demonstrations one by one, in the layout that demo_file.py describes."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from ddp_cli.data.demo import Demo
from ddp_cli.disk import replace
from ddp_cli.errors import WorkerError

FORMAT_VERSION = 1
HDF5_OVERHEAD_BYTES = 1 << 16  # metadata that HDF5 may add with a demo


class DemoWriter:
    """Appends demos to PATH.partial; `finish` renames it to PATH.

    An interrupted file is resumed if its `identity` (everything that determines the content) is the same; otherwise it
    is started from scratch.
    """

    def __init__(self, path: Path, env_args: dict[str, Any], identity: dict[str, Any]) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        identity_json = json.dumps(identity, sort_keys=True)
        self._file = self._reopen(identity_json)
        if self._file is None:
            self._file = h5py.File(self.partial, "w")
            data = self._file.create_group("data")
            self._file.create_group("models")
            data.attrs["env_args"] = json.dumps(env_args, sort_keys=True)
            data.attrs["identity"] = identity_json
            data.attrs["format"] = FORMAT_VERSION
            self._set_counts({"demos": 0, "attempts": 0, "failures": 0, "total": 0})
            self._file.flush()

    def _reopen(self, identity_json: str) -> h5py.File | None:
        try:
            file = h5py.File(self.partial, "r+")
            if file["data"].attrs["identity"] == identity_json:
                uncounted = f"demo_{json.loads(file['data'].attrs['counts'])['demos']}"
                if uncounted in file["data"]:  # interrupted after writing the arrays, before counting the demo
                    del file["data"][uncounted]
                return file
            file.close()
        except (OSError, KeyError, RuntimeError):
            pass  # no partial file, or damaged by the interruption
        return None

    @property
    def counts(self) -> dict[str, int]:
        """`demos` in the file, `attempts` to record them, `failures` among the attempts, `total` steps."""
        return dict(json.loads(self._data.attrs["counts"]))

    def _set_counts(self, counts: dict[str, int]) -> None:
        self._data.attrs["counts"] = json.dumps(counts)  # a single attribute, so that they change together

    @property
    def _data(self) -> h5py.Group:
        assert self._file is not None
        return self._file["data"]

    def append(self, demo: Demo | None) -> None:
        """Counts an attempt, and appends its demo; None is a failed attempt."""
        data, counts = self._data, self.counts
        if demo is not None:
            array_bytes = sum(array.nbytes for array in demo.arrays.values())
            self._check_free_space(array_bytes + len(demo.xml) + HDF5_OVERHEAD_BYTES)
            group = data.create_group(f"demo_{counts['demos']}")
            for name, array in demo.arrays.items():
                group.create_dataset(name, data=array, compression="gzip", compression_opts=9, shuffle=True)
            group.attrs["num_samples"] = len(demo.actions)
            group.attrs["seed"] = demo.seed
            group.attrs["model"] = self._write_model(demo.xml)
            counts["demos"] += 1
            counts["total"] += len(demo.actions)
        else:
            counts["failures"] += 1
        counts["attempts"] += 1
        self._set_counts(counts)
        data.file.flush()

    def _check_free_space(self, size: int) -> None:
        """OSError unless the disk has `size` more bytes: a failed write would leave HDF5 in an unusable state."""
        if hasattr(os, "posix_fallocate"):
            with self.partial.open("rb+") as f:
                end = f.seek(0, os.SEEK_END)
                try:
                    os.posix_fallocate(f.fileno(), end, size)
                finally:
                    f.truncate(end)

    def _write_model(self, xml: str) -> str:
        """Adds a model unless an earlier demo has the same; returns its name in the group `models`."""
        name = hashlib.sha256(xml.encode()).hexdigest()[:16]
        models = self._data.file["models"]
        if name not in models:
            models.create_dataset(name, data=np.frombuffer(zlib.compress(xml.encode(), 9), np.uint8))
        return name

    def finish(self) -> None:
        """Syncs the file to disk and renames it to its final name."""
        assert self._file is not None
        self._data.attrs.update(self.counts)
        self._file.close()
        self._file = None
        replace(self.partial, self.path)

    def __enter__(self) -> DemoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Keeps the partial file after an interruption, and removes it after any other error."""
        if self._file is not None:
            self._file.close()
            self._file = None
            if kind is not None and not issubclass(kind, KeyboardInterrupt | WorkerError):
                self.partial.unlink(missing_ok=True)
