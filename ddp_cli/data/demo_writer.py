"""Writes raw demonstrations one by one, in the layout that demo_file.py describes."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddp_cli.data.demo import Demo
from ddp_cli.disk import replace
from ddp_cli.locks import final_path

FORMAT_VERSION = 1
HDF5_OVERHEAD_BYTES = 1 << 16  # metadata that HDF5 may add with a demo


class DemoWriter:
    """Appends demos to a temporary file, `.NAME.partial`; `finish` renames it to PATH. Without it nothing is left.

    `identity`: everything that determines the content, kept as an attribute.
    """

    def __init__(self, path: Path, env_args: dict[str, Any], identity: dict[str, Any]) -> None:
        self.path = path = final_path(path)
        self._partial = path.with_name(f".{path.name}.partial")
        self.n_demos = self.n_steps = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(self._partial, "w")
        self._data = self._file.create_group("data")
        self._models = self._file.create_group("models")
        self._data.attrs["env_args"] = json.dumps(env_args, sort_keys=True)
        self._data.attrs["identity"] = json.dumps(identity, sort_keys=True)
        self._data.attrs["format"] = FORMAT_VERSION
        self._file.flush()

    def append(self, demo: Demo) -> None:
        """Adds a demo."""
        array_bytes = sum(array.nbytes for array in demo.arrays.values())
        self._check_free_space(array_bytes + len(demo.xml) + HDF5_OVERHEAD_BYTES)
        group = self._data.create_group(f"demo_{self.n_demos}")
        for name, array in demo.arrays.items():
            group.create_dataset(name, data=array, compression="gzip", compression_opts=9, shuffle=True)
        group.attrs["num_samples"] = len(demo.actions)
        group.attrs["seed"] = demo.seed
        group.attrs["model"] = self._write_model(demo.xml)
        if demo.policy_steps is not None:
            group.attrs["policy_steps"] = demo.policy_steps
        if demo.success is not None:
            group.attrs["success"] = demo.success
        self.n_demos += 1
        self.n_steps += len(demo.actions)
        self._file.flush()

    def _check_free_space(self, size: int) -> None:
        """OSError unless the disk has `size` more bytes: a failed write would leave HDF5 in an unusable state."""
        if hasattr(os, "posix_fallocate"):
            with self._partial.open("rb+") as f:
                end = f.seek(0, os.SEEK_END)
                try:
                    os.posix_fallocate(f.fileno(), end, size)
                finally:
                    f.truncate(end)

    def _write_model(self, xml: str) -> str:
        """Adds a model unless an earlier demo has the same; returns its name in the group `models`."""
        name = hashlib.sha256(xml.encode()).hexdigest()[:16]
        if name not in self._models:
            self._models.create_dataset(name, data=np.frombuffer(zlib.compress(xml.encode(), 9), np.uint8))
        return name

    def finish(self, attempts: int | None = None) -> None:
        """Syncs the file to disk and renames it to its final name.

        `attempts`: how many were made to record the demos, if some failed.
        """
        attempts = attempts or self.n_demos
        counts = {
            "demos": self.n_demos, "attempts": attempts, "failures": attempts - self.n_demos, "total": self.n_steps,
        }  # fmt: skip
        self._data.attrs["counts"] = json.dumps(counts)
        self._data.attrs.update(counts)
        self._file.close()
        replace(self._partial, self.path)

    def __enter__(self) -> DemoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)
