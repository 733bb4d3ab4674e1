"""What a file of demonstrations is, in words: read, not converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.lerobot_reader import INFO, read_json_object
from ddp_cli.data.replay_report import in_words
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError


def inspect_file(demos: DemoFile) -> dict[str, Any]:
    """Kind, task, versions, lengths, arrays with shapes and ranges, controller, and what would be done."""
    origin = demos.origin
    bad: dict[str, str] = {}
    ranges: dict[str, tuple[float, float]] = {}
    lengths, models = [], 0
    for name in demos.names:
        try:
            demo = demos.read(name)
        except DataError as e:
            bad[name] = e.message.removeprefix(f"'{demos.path}' {name}").lstrip(": ")
            continue
        lengths.append(len(demo.actions))
        models += bool(demo.xml)
        for key, array in demo.arrays.items():
            low, high = ranges.get(key, (np.inf, -np.inf))
            ranges[key] = (min(low, float(array.min())), max(high, float(array.max())))
    good = [name for name in demos.names if name not in bad]
    keys = (*demos.task.cameras, *demos.task.vectors("state"))
    lacking = (
        next(filter(None, (demos.reason_unusable(key, good) for key in keys)), "") if good else "no demo can be used"
    )
    controller = origin.controller or {}
    return {
        "kind": f"HDF5, written by {origin.tool}",
        "environment": origin.env_name,
        "task": demos.task.name,
        "robosuite": origin.version or "not said",
        "demos": len(demos.names),
        "lengths": [min(lengths), round(float(np.median(lengths))), max(lengths)] if lengths else [],
        "steps": sum(lengths),
        "filters": demos.filters,
        "controller": controller.get("type", "OSC_POSE" if controller else "not said"),
        "actions": origin.actions,
        "models": models,
        "ranges": {key: list(pair) for key, pair in ranges.items()},
        "observations": demos.observations(good[0]) if good else {},
        "bad": bad,
        "obstacles": origin.incompatibilities(),
        "plan": _plan(demos, lacking),
    }


def _plan(demos: DemoFile, lacking: str) -> str:
    if demos.task.name == "none":
        return f"describe a task of {demos.task.env_name} in a file, and name it with --task"
    if demos.origin.incompatibilities():
        return "it would be refused"
    what = "observations are taken from the file"
    if lacking:
        what = f"what the file does not hold is looked at in the simulator ({lacking})"
    keep = " Add --actions absolute: its actions are." if demos.origin.actions == "absolute" else ""
    return f"{what}.{keep}"


def rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """As a table of two columns."""
    low_high = [f"{key} {low:.3g} to {high:.3g}" for key, (low, high) in found["ranges"].items()]
    lengths = found["lengths"]
    steps = f"{found['steps']} (shortest {lengths[0]}, median {lengths[1]}, longest {lengths[2]})" if lengths else "0"
    table = [
        ("kind", found["kind"]),
        ("environment", f"{found['environment']} (task {found['task']})"),
        ("robosuite", found["robosuite"]),
        ("demos", f"{found['demos']}, {found['models']} with their model"),
        ("steps", steps),
        ("filters", ", ".join(found["filters"]) or "none"),
        ("controller", found["controller"]),
        ("actions", found["actions"]),
        ("ranges", "; ".join(low_high)),
        ("observations", "; ".join(f"{key} {shape}" for key, shape in found["observations"].items()) or "none"),
    ]
    table += [(f"bad: {name}", why) for name, why in found["bad"].items()]
    table += [("cannot be converted", why) for why in found["obstacles"]]
    return [*table, ("ddp convert", found["plan"])]


def inspect_store(store: Store) -> dict[str, Any]:
    """What a store holds, and where it comes from."""
    ends = store.episode_ends
    lengths = np.diff(ends, prepend=0)
    source = store.attrs["source"]
    return {
        "kind": "store of ddp",
        "task": store.task.name,
        "episodes": len(ends),
        "steps": int(ends[-1]),
        "lengths": f"shortest {lengths.min()}, median {np.median(lengths):.0f}, longest {lengths.max()}",
        "observations": store.attrs.get("obs", "image"),
        "actions": store.attrs["action"]["convention"],
        "render": store.attrs["render"],
        "versions": ", ".join(f"{name} {version}" for name, version in store.attrs["versions"].items()),
        "source": f"{source.get('file', 'not said')}, {len(source.get('left_out', {}))} demos left out",
        "check": in_words(store.check),
    }


def inspect_lerobot(path: Path) -> dict[str, Any]:
    """What a LeRobot dataset says of itself."""
    info = read_json_object(path / INFO)
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
