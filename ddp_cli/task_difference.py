"""What differs between two tasks, for messages."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from ddp_cli.schema import OBJECT
from ddp_cli.tasks import Task


def describe_difference(task: Task, other: Task, ignore: Collection[str] = ()) -> str:
    """What differs in `task` from `other`, as text; empty where they agree.

    `ignore`: fields that are not compared, such as `horizon`, or `cameras` for those of every camera.

    The order of `object` and of the parts of an action matters, since each is one array; everything else is looked up
    by key. Where one of them has no such key, only the first field of the key is named.
    """
    values, others = _fields(task, ignore), _fields(other, ignore)
    differences = []
    for key in {**values, **others}:
        ours, theirs = values.get(key, {}), others.get(key, {})
        names = {**ours, **theirs}
        differences += [
            f"{key}{name} {ours.get(name, 'absent')} instead of {theirs.get(name, 'absent')}"
            for name in (names if ours and theirs else list(names)[:1])
            if ours.get(name) != theirs.get(name)
        ]
    more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
    return ", ".join(differences[:3]) + more


def _fields(task: Task, ignore: Collection[str]) -> dict[str, dict[str, str]]:
    """The fields of each key of `task`, such as `vectors.robot0_eef_pos`: the one that names it best first, as ""."""
    schema, simulator = task.schema, task.simulator
    single: dict[str, Any] = {"name": task.name}
    if simulator:
        single |= {
            "env_name": simulator.env_name,
            "robots": simulator.robots,
            "controllers": simulator.controllers,
            "env_kwargs": simulator.env_kwargs,
            "object": simulator.object,
            "model_varies": simulator.model_varies,
        }
    single |= {"horizon": task.horizon, "rate": schema.rate}
    fields: dict[str, dict[str, Any]] = {key: {"": value} for key, value in single.items()}
    for key, camera in schema.cameras.items():
        name = {"": simulator.cameras.get(key)} if simulator else {}
        fields[f"cameras.{key}"] = name | {".shape": camera.shape, ".recorded": camera.recorded, ".fit": camera.fit}
    for key, vector in schema.vectors.items():
        if key != OBJECT or not simulator:
            rest = {f".{name}": getattr(vector, name) for name in ("unit", "names", "normalization")}
            fields[f"vectors.{key}"] = {"": vector.width} | rest
    for i, part in enumerate(schema.action):
        rest = {f".{name}": value for name, value in part.model_dump(exclude={"name", "width"}).items()}
        fields[f"action.{part.name}"] = {"": part.width} | rest | {".index": i}
    return {
        key: {name: json.dumps(value) for name, value in entry.items()}
        for key, entry in fields.items()
        if key.partition(".")[0] not in ignore
    }
