"""Converts a LeRobot dataset of a task of robosuite (format v3.0) to a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddp_cli.data.episode_selection import select_episodes
from ddp_cli.data.lerobot_reader import NOT_VERIFIED, LeRobotDataset
from ddp_cli.data.store_copy import select_of_episodes
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.locks import lock_output


def convert_lerobot(
    dataset: LeRobotDataset,
    out: Path,
    only: str | None,
    zarr_format: int,
    progress: Callable[[int, int], None],
    with_motion: bool = True,
) -> int:
    """Writes the episodes of `dataset` that `only` selects to the store `out`; returns the number of steps.

    They are checked before anything is written, see `LeRobotDataset.check`. An interrupted conversion is resumed.
    """
    indices = select_episodes(len(dataset.lengths), only, f"'{dataset.path}'")
    dataset.check(indices, with_motion)
    lengths = [dataset.lengths[i] for i in indices]
    # The renderer of other datasets is unknown; robosuite's own is assumed, as for robomimic's.
    attributes: dict[str, Any] = {"render": "full", "env_args": {}, "versions": {}} | {
        key: value for key, value in dataset.attrs.items() if key in ("render", "env_args", "versions")
    }
    attributes |= {
        "obs": dataset.obs,
        "action": dataset.task.describe_action(dataset.convention),
        "source": {
            "file": dataset.path.name,
            "sha256": dataset.sha256(),
            "left_out": {},
            **_describe_episodes(dataset, indices),
        },
    }
    with lock_output(out), StoreWriter(out, dataset.task, lengths, attributes, zarr_format) as writer:
        writer.extend(dataset.episodes(indices[writer.episodes :]), progress)
        check = dataset.original_check
        writer.finish({"check": check if check.get("result") == "failed" else NOT_VERIFIED})
    return sum(lengths)


def _describe_episodes(dataset: LeRobotDataset, indices: list[int]) -> dict[str, Any]:
    """The names of episodes, and in which ones a policy acted, as the store says that `dataset` was written from; the
    numbers of episodes for other datasets.
    """
    source = dataset.attrs.get("source")
    source = source if isinstance(source, dict) else {}
    names = source.get("demos")
    if not isinstance(names, list) or len(names) != len(dataset.lengths):
        return {"demos": indices}
    chosen = [str(names[i]) for i in indices]
    return {"demos": chosen, **select_of_episodes(source, chosen)}
