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
from ddp_cli.data.lint import describe_lint, lint_recording, lint_store
from ddp_cli.data.recording import Recording
from ddp_cli.data.recording_schema import plan_recording
from ddp_cli.data.recordings import open_recording
from ddp_cli.data.store import STORE_MARKERS, Store
from ddp_cli.errors import DataError
from ddp_cli.tasks import Task


def inspect_source(path: Path, task: Task | None = None) -> dict[str, Any]:
    """The contents of an HDF5 file, a store or a LeRobot dataset as JSON; the key `kind` names which it is.

    `task` describes the environment of an HDF5 file that no built-in task uses, or is that of a LeRobot dataset.
    DataError for anything else.
    """
    is_other = path.exists() and task is None and not is_lerobot(path)
    recording = open_recording(path, as_recorded=False) if is_other else None
    if recording is not None:
        return _inspect_recording(recording)
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
    if "arrays" in contents and "schema" in contents:
        return _describe_recording(contents)
    if "ranges" in contents:
        return describe_demo_file(contents)
    rows = [(name, str(value)) for name, value in contents.items() if name not in ("schema", "lint", "lint_images")]
    return [*rows, *describe_lint(contents)]


def _inspect_zarr(path: Path) -> dict[str, Any]:
    try:
        root = zarr.open_group(path, mode="r")
        is_store = "format" in root.attrs
        foreign = {} if is_store else _inspect_foreign_zarr(root)
    except Exception as e:  # damaged metadata raises many kinds
        raise DataError(f"'{path}' is a damaged zarr folder: {' '.join(str(e).split())}.", "Copy it again.") from e
    return _inspect_store(Store(path)) if is_store else foreign


def _inspect_foreign_zarr(root: zarr.Group) -> dict[str, Any]:
    """A zarr folder that is neither a store nor a replay buffer."""
    members = root.members(max_depth=2)
    arrays = {name: member for name, member in members if isinstance(member, zarr.Array)}
    contents: dict[str, Any] = {"kind": f"zarr folder (format {root.metadata.zarr_format}), not written by ddp"}
    contents["arrays"] = "; ".join(f"{name} {tuple(a.shape)} {a.dtype}" for name, a in sorted(arrays.items()))
    contents["ddp convert"] = "rejects this folder: it has no data and meta/episode_ends, as replay buffers have"
    return contents


def _inspect_recording(recording: Recording) -> dict[str, Any]:
    schema, plan = plan_recording(recording)
    lengths = [n for n in recording.lengths if n]  # an episode without steps cannot be read
    return {
        "kind": recording.kind,
        "episodes": len(recording.lengths),
        "steps": sum(recording.lengths),
        "lengths": [min(lengths), round(float(np.median(lengths))), max(lengths)],
        "rate": recording.rate,
        "arrays": {name: [*step.shape, str(step.dtype)] for name, step in recording.arrays.items()},
        "notes": recording.notes,
        "schema": schema,
        "plan": plan,
        **lint_recording(recording, schema),
    }


def _describe_recording(contents: dict[str, Any]) -> list[tuple[str, ...]]:
    shortest, median, longest = contents["lengths"]
    schema = contents["schema"]
    observed = [*schema.get("cameras", {}), *schema.get("vectors", {})]
    rows: list[tuple[str, ...]] = [
        ("kind", contents["kind"]),
        ("episodes", str(contents["episodes"])),
        ("steps", f"{contents['steps']} (shortest {shortest}, median {median}, longest {longest})"),
        ("rate", f"{contents['rate']:g} Hz" if contents["rate"] else "not stated"),
        ("arrays", "; ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in contents["arrays"].items())),
    ]
    if schema:
        width = sum(part["width"] for part in schema["action"])
        rows += [("observations", ", ".join(observed)), ("action", f"{schema['action_source']} ({width})")]
    rows += [("note", note) for note in contents["notes"]]
    return [*rows, ("ddp convert", contents["plan"]), *describe_lint(contents)]


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
        **lint_store(store),
    }
