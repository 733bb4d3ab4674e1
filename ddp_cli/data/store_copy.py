"""A store from a store: some of its episodes, the other convention of actions, another zarr format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import DataError, DdpError
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d, matrix_to_rotvec, quaternion_to_matrix, rotvec_to_matrix
from ddp_cli.sim.simulator import check_actions
from ddp_cli.tasks import ACTIONS, DELTA_METRES, DELTA_RADIANS

SITE = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""Orientation of the grip site, which actions move, in the hand, whose orientation is observed (Panda)."""


def choose(count: int, only: str | None, where: str) -> list[int]:
    """`:50`, `10:20` or `::2`, as Python slices, of `count` episodes; DataError when that is none."""
    if only is None:
        return list(range(count))
    parts = only.split(":")
    try:
        if len(parts) not in (2, 3):
            raise ValueError
        chosen = list(range(count))[slice(*(int(part) if part else None for part in parts))]
    except ValueError:
        raise DataError(f"'{only}' chooses no episodes.", "Write a slice: --only :50 or --only 10:20.") from None
    if not chosen:
        raise DataError(f"{where} has {count} episodes, of which '{only}' chooses none.", "Write --only :50.")
    return chosen


def copy_store(
    store: Store,
    out: Path,
    only: str | None,
    actions: str | None,
    zarr_format: int,
    progress: Callable[[int, int], None],
) -> int:
    """Writes the chosen episodes of `store` to `out`, with actions by the convention `actions` (None: as they are).
    Returns the number of steps. An interrupted call goes on where it ended.
    """
    if out.resolve() == store.path.resolve():
        raise DdpError(f"'{out}' is the store itself.", "Name another output with --out.")
    chosen = choose(len(store.episode_ends), only, f"'{store.path}'")
    given = store.attrs["action"]["convention"]
    actions = actions or given
    check_actions(actions)
    if actions != given and not store.task.built_in:
        raise DataError(
            f"'{store.path}' is of the task '{store.task.name}', whose arm may stand anywhere.",
            "Convert its demos again with --actions.",
        )
    every = store.spans
    spans = [every[i] for i in chosen]
    lengths = [end - begin for begin, end in spans]
    kept = {key: value for key, value in store.attrs.items() if key not in ("format", "task", "complete", "total")}
    names = kept["source"].get("demos", [])
    source = kept["source"] | {"demos": [names[i] for i in chosen] if len(names) == len(store.episode_ends) else chosen}
    attributes = kept | {
        "obs": store.attrs.get("obs", "image"), "action": ACTIONS[actions], "source": source,
        "copied_from": {"file": store.path.name, "sha256": store.content_hash()},
    }  # fmt: skip
    keys = [*store.pictures, *store.task.vectors("state"), "action"]

    def read(span: tuple[int, int]) -> dict[str, NDArray[Any]]:
        episode = {key: store.read(key, rows=slice(*span)) for key in keys}
        if actions != given:
            episode["action"] = convert_actions(episode, actions).astype(np.float32)
        return episode

    with StoreWriter(out, store.task, lengths, attributes, zarr_format) as writer:
        writer.extend(map(read, spans[writer.episodes :]), progress)
    writer.finish({})
    return sum(lengths)


def convert_actions(episode: dict[str, NDArray[Any]], actions: str) -> NDArray[np.float64]:
    """Actions (n, 7 or 10) of an episode by the other convention, from where the hand was before each.

    A delta action sets a goal relative to the pose of the hand: DELTA_METRES and DELTA_RADIANS away at 1.0.
    """
    given, position = episode["action"].astype(np.float64), episode["robot0_eef_pos"].astype(np.float64)
    rotation = quaternion_to_matrix(episode["robot0_eef_quat"].astype(np.float64)) @ SITE
    if actions == "absolute":
        goals = position + DELTA_METRES * given[:, :3]
        turned = np.stack([rotvec_to_matrix(DELTA_RADIANS * turn) for turn in given[:, 3:6]]) @ rotation
        return np.concatenate([goals, matrix_to_6d(turned), given[:, 6:]], axis=1)
    move = (given[:, :3] - position) / DELTA_METRES
    turns = matrix_from_6d(given[:, 3:9]) @ rotation.transpose(0, 2, 1)
    turn = np.stack([matrix_to_rotvec(matrix) for matrix in turns]) / DELTA_RADIANS
    return np.concatenate([move, turn, given[:, 9:]], axis=1).clip(-1, 1)
