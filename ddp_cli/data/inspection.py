"""Describes HDF5 files of demonstrations, stores and LeRobot datasets without converting them (`ddp inspect`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ddp_cli.data.check_summary import check_summary
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.demo_file_inspection import describe_demo_file, inspect_demo_file
from ddp_cli.data.hdf5 import reject_folder_of_files
from ddp_cli.data.lerobot_inspection import inspect_lerobot
from ddp_cli.data.lerobot_layout import is_lerobot, reject_collection
from ddp_cli.data.store import STORE_MARKERS, Store
from ddp_cli.errors import DataError
from ddp_cli.tasks import Task


def inspect_source(path: Path, task: Task | None = None) -> dict[str, Any]:
    """The contents of an HDF5 file, a store or a LeRobot dataset as JSON; the key `kind` names which it is.

    `task` describes the environment of an HDF5 file that no built-in task uses, or is that of a LeRobot dataset.
    DataError for anything else.
    """
    if not path.is_dir():
        with DemoFile(path, task, allow_unknown_env=True) as demos:
            return inspect_demo_file(demos)
    if is_lerobot(path):
        return inspect_lerobot(path, task)
    if any((path / name).exists() for name in STORE_MARKERS):
        kind, contents = "a zarr folder", _inspect_zarr(path)
    else:
        reject_collection(path)
        reject_folder_of_files(path)
        raise DataError(
            f"'{path}' is a folder, but not a store or a LeRobot dataset.",
            "Name an HDF5 file of demonstrations, store, LeRobot dataset, run, checkpoint or exported folder.",
        )
    if task is not None:
        raise DataError(f"--task does not apply to '{path}', which is {kind}.", "Leave it out.")
    return contents


def describe_source(contents: dict[str, Any]) -> list[tuple[str, ...]]:
    """The result of `inspect_source` as rows (name, value) for people."""
    if "ranges" in contents:
        return describe_demo_file(contents)
    return [(name, str(value)) for name, value in contents.items()]


def _inspect_zarr(path: Path) -> dict[str, Any]:
    try:
        root = zarr.open_group(path, mode="r")
        is_store = "format" in root.attrs
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"'{path}' is a damaged zarr folder: {' '.join(str(e).split())}.", "Copy it again.") from e
    return _inspect_store(Store(path)) if is_store else _inspect_foreign_zarr(root)


def _inspect_foreign_zarr(root: zarr.Group) -> dict[str, Any]:
    """A zarr folder of other people, for example a replay buffer of the published code."""
    members = root.members(max_depth=2)
    arrays = {name: member for name, member in members if isinstance(member, zarr.Array)}
    contents: dict[str, Any] = {"kind": f"zarr folder (format {root.metadata.zarr_format}), not written by ddp"}
    ends = arrays.get("meta/episode_ends")
    if ends is not None and ends.ndim == 1 and ends.size:
        values = np.asarray(ends[:])
        lengths = np.diff(values, prepend=0)
        contents["episodes"] = len(values)
        contents["steps"] = int(values[-1])
        contents["lengths"] = f"shortest {lengths.min()}, median {np.median(lengths):.0f}, longest {lengths.max()}"
    contents["arrays"] = "; ".join(f"{name} {tuple(a.shape)} {a.dtype}" for name, a in sorted(arrays.items()))
    contents["ddp convert"] = "rejects this folder: it was not written by `ddp convert`"
    return contents


def _inspect_store(store: Store) -> dict[str, Any]:
    lengths = np.diff(store.episode_ends, prepend=0)
    source = store.attrs["source"]
    return {
        "kind": "ddp store",
        "task": store.task.name,
        "episodes": len(store.episode_ends),
        "steps": int(store.episode_ends[-1]),
        "lengths": f"shortest {lengths.min()}, median {np.median(lengths):.0f}, longest {lengths.max()}",
        "observations": store.attrs.get("obs", "image"),
        "actions": store.attrs["action"]["convention"],
        "render": store.attrs["render"],
        "versions": ", ".join(f"{name} {version}" for name, version in store.attrs["versions"].items()),
        "source": f"{source.get('file', 'unknown')}, {len(source.get('left_out', {}))} demonstrations skipped",
        "check": check_summary(store.check),
    }
