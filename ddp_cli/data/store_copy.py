"""Copies a store: some of its episodes, with the other action convention, or in another zarr format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.choices import PolicyEpisodes
from ddp_cli.data.actions import absolute_to_delta, delta_to_absolute
from ddp_cli.data.check_summary import not_verified
from ddp_cli.data.episode_selection import select_episodes
from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import DataError
from ddp_cli.locks import lock_output
from ddp_cli.sim.environment import check_action_convention

NOT_INHERITED = ("format", "task", "schema", "complete", "total", "episodes", "content", "check")
"""Attributes that a copy writes itself."""


def copy_store(
    store: Store,
    out: Path,
    only: str | None,
    convention: str | None,
    zarr_format: int,
    progress: Callable[[int, int], None],
    keep: PolicyEpisodes | None = None,
) -> int:
    """Writes the episodes of `store` that `only` selects to `out`, with actions in `convention` (None: unchanged);
    with `keep` takeovers, the steps in which an operator took over from a policy, each takeover as an episode; with
    successes, without the episodes of a policy that failed.
    Returns the number of steps. An interrupted copy is resumed.
    """
    indices = select_episodes(len(store.episode_ends), only, f"'{store.path}'")
    if keep == "successes":
        indices = _successes(store, indices)
    source_convention = store.attrs["action"]["convention"]
    convention = convention or source_convention
    if convention != source_convention:
        check_action_convention(store.task, convention)
        _check_base_is_known(store)
    all_bounds = store.episode_bounds
    bounds = [all_bounds[i] for i in indices]
    lengths = [end - begin for begin, end in bounds]
    keys = [*store.image_keys, *store.task.vectors("state"), "action"]

    def read_episode(rows: tuple[int, int]) -> dict[str, NDArray[Any]]:
        episode = {key: store.read(key, rows=slice(*rows)) for key in keys}
        if convention != source_convention:
            convert = delta_to_absolute if convention == "absolute" else absolute_to_delta
            actions = convert(episode["action"], episode["robot0_eef_pos"], episode["robot0_eef_quat"])
            episode["action"] = actions.astype(np.float32)
        return episode

    attributes = _attributes(store, indices, convention)
    if keep == "takeovers":
        bounds, names = _takeovers(store, indices)
        lengths = [end - begin for begin, end in bounds]
        kept = {k: v for k, v in attributes["source"].items() if k not in {"policy_episodes", "takeovers"}}
        attributes |= {"source": kept | {"demos": names}}
    with lock_output(out), StoreWriter(out, store.task, lengths, attributes, zarr_format) as writer:
        writer.extend(map(read_episode, bounds[writer.episodes :]), progress)
        writer.finish({"check": _check_of_copy(store, attributes)})
    return sum(lengths)


def _successes(store: Store, indices: list[int]) -> list[int]:
    """Those of the episodes `indices` in which no policy failed; DataError if none is left, or no policy acted."""
    names = store.episode_names
    if not store.policy_episodes:
        raise DataError(f"'{store.path}' holds no episodes of a policy.", "Copy it without --keep successes.")
    successes = [i for i in indices if store.policy_episodes.get(names[i], True)]
    if not successes:
        raise DataError(f"the policy failed in all {len(indices)} episodes of '{store.path}'.", "Record more of them.")
    return successes


def _takeovers(store: Store, indices: list[int]) -> tuple[list[tuple[int, int]], list[str]]:
    """Rows and names of all takeovers in the episodes `indices`; DataError if there are none."""
    bounds, names = [], []
    for i in indices:
        name, (begin, stop) = store.episode_names[i], store.episode_bounds[i]
        for span in store.takeovers.get(name, []):
            first, end = _check_span(store, name, span, stop - begin)
            bounds.append((begin + first, begin + end))
            names.append(f"{name}/{first}")
    if not bounds:
        raise DataError(
            f"'{store.path}' holds no steps in which an operator took over.", "Copy it without --keep takeovers."
        )
    return bounds, names


def _check_span(store: Store, name: str, span: Any, length: int) -> tuple[int, int]:
    """First step and one past the last of a takeover in an episode of `length` steps; DataError if it is none."""
    if isinstance(span, list) and len(span) == 2 and all(type(step) is int for step in span):
        first, end = span
        if 0 <= first < end <= length:
            return first, end
    raise DataError(
        f"'{store.path}' is damaged: the takeover {span!r} of '{name}' is not within its {length} steps.",
        "Copy it without --keep takeovers.",
    )


def _check_base_is_known(store: Store) -> None:
    """DataError unless actions can be converted: that needs the pose of the robot's base."""
    if store.task.simulator is None:
        raise DataError(
            f"'{store.path}' holds actions as they were recorded: their meaning is not known.", "Omit --actions."
        )
    if not store.task.is_built_in or store.task.n_robots > 1:
        raise DataError(
            f"'{store.path}' holds the task '{store.task.name}', whose robot base pose is not known.",
            "Convert its demonstrations again with --actions.",
        )


def select_of_episodes(source: dict[str, Any], names: list[Any]) -> dict[str, Any]:
    """What `source` says of single episodes, for those with these names."""
    kept = set(names)
    return {
        key: {name: value for name, value in source[key].items() if name in kept}
        for key in ("policy_episodes", "takeovers")
        if isinstance(source.get(key), dict)
    }


def _attributes(store: Store, indices: list[int], convention: str) -> dict[str, Any]:
    inherited = {key: value for key, value in store.attrs.items() if key not in NOT_INHERITED}
    names = inherited["source"].get("demos", [])
    demos = [names[i] for i in indices] if len(names) == len(store.episode_ends) else indices
    return inherited | {
        "obs": "image" if store.image_keys else "state",
        "action": store.task.describe_action(convention)
        if convention != store.attrs["action"]["convention"]
        else store.attrs["action"],
        "source": inherited["source"] | {"demos": demos} | select_of_episodes(inherited["source"], demos),
        "copied_from": {"file": store.path.name, "sha256": store.content_hash()},
    }


def _check_of_copy(store: Store, attributes: dict[str, Any]) -> dict[str, Any]:
    """The result of the source's replay check, as far as it holds for the copy: a failure always does."""
    check = store.check
    if check["result"] != "passed":
        return check
    source_convention = store.attrs["action"]["convention"]
    if attributes["action"]["convention"] != source_convention:
        return not_verified(f"the actions were computed from {source_convention} ones, which passed the replay check")
    # Stores of earlier versions list only the demos that were replayed as a whole.
    checked = check.get("checked_demos", [demo["demo"] for demo in check["demos"]])
    remaining = [name for name in attributes["source"]["demos"] if name in checked]
    if not remaining:
        return not_verified("none of the replayed demos is among these")
    return check | {"checked_demos": remaining, "inherited": True}
