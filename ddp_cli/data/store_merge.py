"""Merges stores of one task: all their episodes, one store after another."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.check_summary import not_verified
from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import DataError
from ddp_cli.locks import lock_output

SAME = ("action", "render", "obs", "versions")
"""Attributes that all stores must share."""
MAX_VALUES = ("chunk_mm_p90", "chunk_deg_p90", "chunk_gap_mm_p90", "replay_mm", "replay_deg", "startup_mm")
SUMMED_VALUES = ("chunks", "recorded_successes", "replay_successes", "startup_demos", "compared_demos")


def merge_stores(
    stores: Sequence[Store], out: Path, zarr_format: int, progress: Callable[[int, int], None]
) -> list[int]:
    """Writes the episodes of all `stores` to `out`; returns the number of each store's episodes. An interrupted merge
    is resumed. DataError or ConfigError names the first store that does not fit the others.
    """
    _check_fit(stores)
    first = stores[0]
    keys = [*first.image_keys, *first.task.vectors("state"), "action"]
    spans = [(store, bounds) for store in stores for bounds in store.episode_bounds]
    lengths = [end - begin for _, (begin, end) in spans]

    def read_from(episode: int) -> Iterator[dict[str, NDArray[Any]]]:
        for store, bounds in spans[episode:]:
            yield {key: store.read(key, rows=slice(*bounds)) for key in keys}

    labels = _labels(stores)
    names = [f"{label}/{name}" for store, label in zip(stores, labels, strict=True) for name in store.episode_names]
    policy_episodes = {
        f"{label}/{name}": success
        for store, label in zip(stores, labels, strict=True)
        for name, success in store.policy_episodes.items()
    }
    takeovers = {
        f"{label}/{name}": spans
        for store, label in zip(stores, labels, strict=True)
        for name, spans in store.takeovers.items()
    }
    hashes = [store.content_hash() for store in stores]
    attributes: dict[str, Any] = {
        **{key: first.attrs[key] for key in ("render", "env_args", "versions", "action")},
        "obs": "image" if first.image_keys else "state",
        "source": {
            "file": ", ".join(labels), "sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(), "demos": names,
            "instructions": instructions(stores),
            **({"policy_episodes": policy_episodes} if policy_episodes else {}),
            **({"takeovers": takeovers} if takeovers else {}),
        },
        # With the observations: a merge that was interrupted is resumed only with the same stores.
        "merged_from": [
            {"file": store.path.name, "sha256": h, "observations_sha256": store.observations_hash()}
            for store, h in zip(stores, hashes, strict=True)
        ],
    }  # fmt: skip
    task = replace(first.task, horizon=max(store.task.horizon for store in stores))
    with lock_output(out), StoreWriter(out, task, lengths, attributes, zarr_format) as writer:
        writer.extend(read_from(writer.episodes), progress)
        writer.finish({"check": _merged_check(stores, labels)})
    return [len(store.episode_ends) for store in stores]


def instructions(stores: Sequence[Store]) -> list[str]:
    """What the episodes of all stores show, in words, where it is known."""
    return sorted({text for store in stores for text in store.attrs["source"].get("instructions", [])})


def _check_fit(stores: Sequence[Store]) -> None:
    first = stores[0]
    vectors = [*first.task.vectors("state"), "action"]
    seen: dict[bytes, str] = {}
    for store in stores:
        store.check_task(first.task)
        for key in SAME:
            if store.attrs.get(key) != first.attrs.get(key):
                raise DataError(
                    f"'{store.path}' cannot be merged with '{first.path}': its {key} is {store.attrs.get(key)!r}, "
                    f"not {first.attrs.get(key)!r}.",
                    "Convert both in the same way.",
                )
        values = [store.read(key) for key in vectors]
        for (begin, end), name in zip(store.episode_bounds, store.episode_names, strict=True):
            episode = f"episode {name} of '{store.path}'"
            digest = hashlib.sha256(b"".join(array[begin:end].tobytes() for array in values)).digest()
            other = seen.setdefault(digest, episode)
            if other != episode:  # one of them could be trained on, and the other held out
                raise DataError(
                    f"{episode} has the same observations and actions as {other}.",
                    "Choose the episodes with --only before.",
                )
        if store.check["result"] == "failed":
            raise DataError(
                f"'{store.path}' failed its check: {store.check['why']}.",
                "Convert it again with --skip-bad, which leaves wrong demonstrations out.",
            )


def _labels(stores: Sequence[Store]) -> list[str]:
    """A name for each store: that of its folder, numbered where several have the same one."""
    labels: list[str] = []
    for store in stores:
        stem = store.path.name.removesuffix(".zarr")
        numbered = (stem if i == 1 else f"{stem}-{i}" for i in itertools.count(1))
        labels.append(next(label for label in numbered if label not in labels))
    return labels


def _merged_check(stores: Sequence[Store], labels: Sequence[str]) -> dict[str, Any]:
    """Passed if all stores passed; the worst of their values."""
    checks = [store.check for store in stores]
    for check, label in zip(checks, labels, strict=True):
        if check["result"] != "passed":
            return not_verified(f"{label}: {check['why'] or 'it was not checked'}")
    within = [check["chunks_within_limits"] for check in checks]
    merged = {
        **checks[0],
        **{key: max(check[key] for check in checks) for key in MAX_VALUES if all(key in check for check in checks)},
        **{key: sum(check.get(key, 0) for check in checks) for key in SUMMED_VALUES},
        "chunks_within_limits": float(np.average(within, weights=[check["chunks"] for check in checks])),
        "psnr": min((check["psnr"] for check in checks if check.get("psnr") is not None), default=None),
        "models": sorted({model for check in checks for model in check["models"]}),
        "inherited": True,
    }
    for key in ("checked_demos", "demos"):
        merged[key] = [
            _renamed(entry, label)
            for check, label in zip(checks, labels, strict=True)
            for entry in check.get(key, [demo["demo"] for demo in check["demos"]])
        ]
    return merged


def _renamed(entry: Any, label: str) -> Any:
    return {**entry, "demo": f"{label}/{entry['demo']}"} if isinstance(entry, dict) else f"{label}/{entry}"
