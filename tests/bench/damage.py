"""Random damage of files and folders, for generated_inputs.py. Each function says what its change does to the data."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SEMANTIC, ANY = "semantic", "any"
"""A change that a replay must notice, or any change."""


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Truncates, empties, extends, removes or changes a file."""
    kind, data = rng.choice(["truncate", "empty", "remove", "flip", "flip", "zero", "append"]), path.read_bytes()
    if kind == "remove":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == "append":
        path.write_bytes(data + rng.randbytes(rng.randint(1, 100)))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            if changed:
                start = rng.randrange(len(changed))
                length = 1 if kind == "flip" else rng.randint(1, 2000)
                changed[start : start + length] = (
                    rng.randbytes(1) if kind == "flip" else bytes(len(changed[start : start + length]))
                )
        path.write_bytes(changed)
    return ANY


def damage_folder(folder: Path, rng: random.Random) -> str:
    """Damages a file of a folder; JSON files often by their values."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    small = [p for p in files if p.suffix == ".json"]
    path = rng.choice(small) if small and rng.random() < 0.5 else rng.choice(files)
    return damage_json(path, rng) if path.suffix == ".json" and rng.random() < 0.7 else damage_bytes(path, rng)


VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**70, 1e308, 0.5, "", "x", "lift", "../x", "\x00", "é" * 300, [], [1], [None], {}, {"a": 1},
    [[1, 2]], float("nan"),
]  # fmt: skip


def damage_json(path: Path, rng: random.Random) -> str:
    """Replaces, removes or adds a value somewhere in a JSON file."""
    value = json.loads(path.read_text())
    spots: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in list(items):
            spots.append((node, key))
            collect(child)

    collect(value)
    for _ in range(rng.randint(1, 2)):
        node, key = rng.choice(spots)
        kind = rng.random()
        if kind < 0.6:
            node[key] = rng.choice(VALUES)
        elif isinstance(node, dict):
            if kind < 0.85:
                node.pop(key, None)
            else:
                node[rng.choice(["x", "format", "shape", "name"])] = rng.choice(VALUES)
    path.write_text(json.dumps(value))
    return ANY


def damage_hdf5(path: Path, rng: random.Random) -> str:
    """Damages the bytes, the structure, or the meaning of a file of demonstrations."""
    kind = rng.random()
    if kind < 0.3:
        return damage_bytes(path, rng)
    with h5py.File(path, "r+") as f:
        demo = f[f"data/demo_{rng.randrange(2)}"]
        return change_meaning(f, rng) if kind < 0.6 else change_structure(f, demo, rng)


def change_meaning(f: h5py.File, rng: random.Random) -> str:
    """Changes all actions, or all times, so that they are no longer those of the recording."""
    change = rng.choice(["scale", "rotate", "shift", "gripper", "swap", "sign", "noise"])
    for demo in f["data"].values():
        actions = demo["actions"][:]
        if change == "scale":
            actions[:, :3] *= rng.choice([0.4, 0.6, 2.0])
        elif change == "rotate":
            actions[:, :2] = actions[:, 1::-1] * [-1, 1]
        elif change == "shift":
            actions = np.roll(actions, rng.choice([-4, 4, 8]), axis=0)
        elif change == "gripper":
            actions[:, 6] *= -1
        elif change == "swap":
            actions[:, [0, 2]] = actions[:, [2, 0]]
        elif change == "sign":
            actions[:, rng.choice([0, 2])] *= -1
        else:
            actions[:, :3] += np.random.default_rng(rng.randrange(1000)).normal(0, 0.7, actions[:, :3].shape)
        demo["actions"][:] = actions
    return SEMANTIC


def change_structure(f: h5py.File, demo: h5py.Group, rng: random.Random) -> str:
    """Replaces an array, an attribute or a group."""
    key = rng.choice(["states", "actions", "states", "actions", "obs/x", "obs/agentview_image"])
    kind = rng.choice(["array", "delete", "attribute", "data attribute", "link", "pad", "rename", "mask"])
    if kind == "attribute":
        demo.attrs[rng.choice(["num_samples", "model", "model_file", "seed"])] = rng.choice(
            [0, -1, 5, "x", 1.5, "<a/>"]
        )
    elif kind == "data attribute":
        name = rng.choice(["env_args", "env", "env_info", "repository_version", "identity"])
        f["data"].attrs[name] = rng.choice(["{}", "[", '{"env_name": 3}', '{"env_name": "Door"}', 5, "Lift", "null"])
    elif kind == "rename":
        f["data"].move(demo.name.rpartition("/")[2], rng.choice(["demo_x", "demo_007", "a/b", "episode 1"]))
    elif kind == "mask":
        f["mask/train"] = rng.choice([np.array([b"demo_0"]), np.zeros(3), np.array([b"x"]), "demo_0"])
    elif kind == "pad" and key in demo:
        values = demo[key][:]
        del demo[key]
        demo[key] = np.concatenate([values, values[: rng.randint(1, 5)]])
    else:
        if key in demo:
            del demo[key]
        if kind == "link":
            demo[key] = rng.choice(
                [h5py.SoftLink("/nowhere"), h5py.ExternalLink("x.hdf5", "/y"), h5py.SoftLink("/data")]
            )
        elif kind == "array":
            shape = tuple(rng.choice([0, 1, 7, 32, 40]) for _ in range(rng.randint(0, 3)))
            value = rng.choice([0.0, 1.0, np.nan, np.inf, 1e300])
            with np.errstate(all="ignore"):
                demo[key] = np.full(shape, value).astype(rng.choice(["f8", "f4", "i4", "u1", "S3", "?"]))
    return ANY


def damage_aloha(folder: Path, rng: random.Random) -> str:
    """Damages an episode: its bytes, or one of its arrays."""
    path = rng.choice(sorted(folder.iterdir()))
    if rng.random() < 0.4:
        return damage_bytes(path, rng)
    with h5py.File(path, "r+") as f:
        key = rng.choice(["action", "observations/qpos", "observations/images/top", "observations/images", "x"])
        kind = rng.choice(["delete", "array", "shorten", "link", "attribute"])
        values = f[key][:] if isinstance(f.get(key), h5py.Dataset) else np.zeros((3, 14))
        if kind == "attribute":
            f.attrs[rng.choice(["sim", "compress", "rate"])] = rng.choice([True, -1, "x", 1.5])
            return ANY
        if key in f:
            del f[key]
        if kind == "shorten":
            f[key] = values[: rng.randrange(len(values))]
        elif kind == "link":
            f[key] = rng.choice(
                [h5py.SoftLink("/nowhere"), h5py.ExternalLink("x.hdf5", "/y"), h5py.SoftLink("/action")]
            )
        elif kind == "array":
            shape = tuple(rng.choice([0, 1, 5, 14, 16]) for _ in range(rng.randint(0, 4)))
            f[key] = np.full(shape, rng.choice([0.0, 1.0, np.nan, 1e300])).astype(rng.choice(["f8", "f4", "u1", "?"]))
    return ANY


def damage_ckpt(path: Path, rng: random.Random) -> str:
    """Damages a checkpoint, or puts a pickle that runs a command in its place."""
    if rng.random() < 0.15:
        import torch

        class Command:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.system, (f"touch {path.parent / 'executed'}",)

        torch.save({"cfg": Command(), "state_dicts": {"model": Command()}}, path)
        return ANY
    return damage_bytes(path, rng)
