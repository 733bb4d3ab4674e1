"""Describes HDF5 files of demonstrations, stores and LeRobot datasets without converting them (`ddp inspect`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.lerobot_reader import INFO_PATH, is_lerobot, read_json_object
from ddp_cli.data.replay_check import check_summary
from ddp_cli.data.store import STORE_MARKERS, Store
from ddp_cli.errors import DataError
from ddp_cli.tasks import Task


def inspect_source(path: Path, task: Task | None = None) -> dict[str, Any]:
    """The contents of an HDF5 file, a store or a LeRobot dataset as JSON; the key `kind` names which it is.

    `task` describes the environment of an HDF5 file that no built-in task uses. DataError for anything else.
    """
    if not path.is_dir():
        with DemoFile(path, task, allow_unknown_env=True) as demos:
            return _inspect_demo_file(demos)
    if is_lerobot(path):
        kind, contents = "a LeRobot dataset", _inspect_lerobot(path)
    elif any((path / name).exists() for name in STORE_MARKERS):
        kind, contents = "a store", _inspect_store(Store(path))
    else:
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
        return _demo_file_rows(contents)
    return [(name, str(value)) for name, value in contents.items()]


def _inspect_demo_file(demos: DemoFile) -> dict[str, Any]:
    """Every demo is read: the ones with faults are listed in `bad`."""
    info = demos.info
    faults: dict[str, str] = {}
    ranges: dict[str, tuple[float, float]] = {}
    lengths, models = [], 0
    for name in demos.names:
        try:
            demo = demos.read(name)
        except DataError as e:
            faults[name] = e.message.removeprefix(f"'{demos.path}' {name}").lstrip(": ")
            continue
        lengths.append(len(demo.actions))
        models += bool(demo.xml)
        for key, array in demo.arrays.items():
            low, high = ranges.get(key, (np.inf, -np.inf))
            ranges[key] = (min(low, float(array.min())), max(high, float(array.max())))
    valid_names = [name for name in demos.names if name not in faults]
    controller = info.controller or {}
    return {
        "kind": f"HDF5, written by {info.tool}",
        "environment": info.env_name,
        "task": demos.task.name,
        "robosuite": info.version or "unknown",
        "demos": len(demos.names),
        "lengths": [min(lengths), round(float(np.median(lengths))), max(lengths)] if lengths else [],
        "steps": sum(lengths),
        "filters": demos.filter_keys,
        "controller": controller.get("type", "OSC_POSE" if controller else "unknown"),
        "actions": info.actions,
        "models": models,
        "ranges": {key: list(pair) for key, pair in ranges.items()},
        "observations": demos.observation_shapes(valid_names[0]) if valid_names else {},
        "bad": faults,
        "obstacles": info.incompatibilities(),
        "plan": _conversion_summary(demos, valid_names),
    }


def _conversion_summary(demos: DemoFile, valid_names: list[str]) -> str:
    """What `ddp convert` would do with a file."""
    if demos.task.name == "none":
        return f"describe a task for {demos.task.env_name} in a file and name it with --task"
    if demos.info.incompatibilities():
        return "rejects this file"
    if not valid_names:
        return "rejects this file: no demonstration is valid"
    keys = (*demos.task.cameras, *demos.task.vectors("state"))
    reason = next(filter(None, (demos.reason_unusable(key, valid_names) for key in keys)), "")
    summary = "copies the observations from the file."
    if reason:
        summary = f"renders the observations that are missing in the file ({reason})."
    return summary + (
        " Add --actions absolute to keep the absolute actions." if demos.info.actions == "absolute" else ""
    )


def _demo_file_rows(contents: dict[str, Any]) -> list[tuple[str, ...]]:
    ranges = [f"{key} {low:.3g} to {high:.3g}" for key, (low, high) in contents["ranges"].items()]
    shapes = [f"{key} {tuple(shape)}" for key, shape in contents["observations"].items()]
    steps = str(contents["steps"])
    if contents["lengths"]:
        shortest, median, longest = contents["lengths"]
        steps += f" (shortest {shortest}, median {median}, longest {longest})"
    rows = [
        ("kind", contents["kind"]),
        ("environment", f"{contents['environment']} (task {contents['task']})"),
        ("robosuite", contents["robosuite"]),
        ("demonstrations", f"{contents['demos']}, {contents['models']} with a recorded model"),
        ("steps", steps),
        ("filter keys", ", ".join(contents["filters"]) or "none"),
        ("controller", contents["controller"]),
        ("actions", contents["actions"]),
        ("ranges", "; ".join(ranges)),
        ("observations", "; ".join(shapes) or "none"),
    ]
    rows += [(f"invalid: {name}", fault) for name, fault in contents["bad"].items()]
    rows += [("incompatible", reason) for reason in contents["obstacles"]]
    return [*rows, ("ddp convert", contents["plan"])]


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


def _inspect_lerobot(path: Path) -> dict[str, Any]:
    info = read_json_object(path / INFO_PATH)
    features = info["features"] if isinstance(info.get("features"), dict) else {}
    shapes = [f"{name} {f.get('shape')}" for name, f in features.items() if isinstance(f, dict)]
    return {
        "kind": f"LeRobot dataset, format {info.get('codebase_version')}",
        "robot": info.get("robot_type"),
        "episodes": info.get("total_episodes"),
        "steps": info.get("total_frames"),
        "rate": f"{info.get('fps')} Hz",
        "features": "; ".join(shapes),
    }
