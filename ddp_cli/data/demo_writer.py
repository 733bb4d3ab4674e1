"""Raw demonstrations out: appended one by one, in the layout that demos.py reads."""

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

from ddp_cli.data.demo_file import FORMAT, Demo
from ddp_cli.errors import WorkerError

SLACK = 1 << 16  # [bytes] of HDF5's own around a demo


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
