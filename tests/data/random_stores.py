"""Stores of random values, for tests of the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.tasks import Task, get_task

TASK = get_task("lift")
ATTRIBUTES = {
    "render": "fast",
    "obs": "image",
    "env_args": {},
    "versions": {},
    "action": {"convention": "delta", "dim": 7},
    "source": {"sha256": "x", "demos": ["demo_0"]},
}


def random_episode(length: int, seed: int, task: Task = TASK) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {k: rng.integers(0, 256, (length, 84, 84, 3)).astype(np.uint8) for k in task.images("image")}
    arrays |= {k: rng.normal(size=(length, w)).astype(np.float32) for k, w in task.vectors("state").items()}
    return arrays | {"action": rng.normal(size=(length, 7)).astype(np.float32)}


def expected_array(key: str, lengths: list[int]) -> np.ndarray:
    """The array `key` of a store of random episodes; the seed of an episode is its index."""
    return np.concatenate([random_episode(length, i)[key] for i, length in enumerate(lengths)])


def write_store(path: Path, lengths: list[int], zarr_format: int = 3, task: Task = TASK) -> Path:
    writer = StoreWriter(path, task, lengths, ATTRIBUTES, zarr_format)
    for i, length in enumerate(lengths):
        writer.append(random_episode(length, i, task))
    writer.finish({})
    return path


def forget_checksums(path: Path) -> Path:
    """Makes it a store of an earlier version, whose arrays may be changed without being noticed when it is opened."""
    del zarr.open_group(path, mode="r+").attrs["content"]
    return path


def write_partial_store(path: Path, task: Task = TASK) -> None:
    """Writes the first of two episodes (70 and 5 steps)."""
    writer = StoreWriter(path, task, [70, 5], ATTRIBUTES, 3)
    writer.append(random_episode(70, 0, task))
    writer.flush()
