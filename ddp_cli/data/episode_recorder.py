"""Records what happens on a robot as a store, one episode after another.

Every episode is a store of its own in the folder `OUT.episodes` until the recording ends: a killed process leaves all
complete ones readable, `ddp convert` merges them, and the next recording to the same output adds to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.check_summary import not_verified
from ddp_cli.data.lint_source import find_runs
from ddp_cli.data.store import Store
from ddp_cli.data.store_merge import SAME
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.disk import remove_folder
from ddp_cli.errors import DataError
from ddp_cli.locks import final_path
from ddp_cli.tasks import Task

WHY_NOT_VERIFIED = "it was recorded while a policy acted, and not replayed"


class EpisodeRecorder:
    """Records episodes for the store `out`. `attributes`: `render`, `obs`, `env_args`, `versions` and `action` of it.

    DataError if the folder holds episodes of another task, or other attributes.
    """

    def __init__(self, out: Path, task: Task, attributes: Mapping[str, Any]) -> None:
        self.out = out = final_path(out)
        self.folder = out.with_name(f"{out.name}.episodes")
        self._task, self._attributes = task, dict(attributes)
        self._steps: list[tuple[Mapping[str, NDArray[Any]], NDArray[Any], bool]] = []
        self._keys = [*task.images(attributes["obs"]), *task.vectors("state")]
        for path in self.paths():
            store = Store(path)
            other = [key for key in SAME if store.attrs.get(key) != self._attributes.get(key)]
            if store.task != task or other:
                raise DataError(
                    f"'{self.folder}' holds episodes of another recording.",
                    f"Merge them with `ddp convert {self.folder}/*.zarr --out OTHER.zarr`, and remove the folder.",
                )

    def paths(self) -> list[Path]:
        """The stores of all complete episodes."""
        return sorted(path for path in self.folder.glob("*.zarr") if re.fullmatch(r"episode-\d{5}", path.stem))

    def add(self, obs: Mapping[str, NDArray[Any]], action: NDArray[Any], is_takeover: bool) -> None:
        """Add a step: an observation, and the action that was executed. DataError if the store needs more."""
        missing = [key for key in self._keys if key not in obs]
        if missing:
            raise DataError(f"the robot does not observe '{missing[0]}', which stores of '{self._task.name}' hold.",
                            "Add it to what the robot observes, or leave --record out.")  # fmt: skip
        self._steps.append((obs, action, is_takeover))

    def discard(self) -> None:
        """Forget the current episode."""
        self._steps = []

    def save(self, success: bool) -> None:
        """Write the current episode."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        number = max((int(path.stem[-5:]) for path in self.paths()), default=0) + 1
        name = f"episode-{number:05d}"
        runs = find_runs(np.array([is_takeover for _, _, is_takeover in steps]))
        spans = [list(run) for run in runs]  # first step and one past the last
        source = {
            "file": "recorded by ddp run", "sha256": "", "demos": [name], "policy_episodes": {name: success},
            **({"takeovers": {name: spans}} if spans else {}),
        }  # fmt: skip
        arrays = {key: np.stack([obs[key] for obs, _, _ in steps]) for key in self._keys}
        arrays["action"] = np.stack([action for _, action, _ in steps]).astype(np.float32)
        attributes = self._attributes | {"source": source}
        with self._new_writer(self.folder / f"{name}.zarr", [len(steps)], attributes) as writer:
            writer.append(arrays)
            writer.finish({"check": not_verified(WHY_NOT_VERIFIED)})

    def finish(self) -> int:
        """Write the store `out` with all episodes, and remove their folder; returns their number. Without episodes
        nothing is written.
        """
        stores = [Store(path) for path in self.paths()]
        if not stores:
            return 0
        sources = [store.attrs["source"] for store in stores]
        takeovers = {name: spans for source in sources for name, spans in source.get("takeovers", {}).items()}
        source = sources[0] | {
            "demos": [name for store in stores for name in store.episode_names],
            "policy_episodes": {name: ok for store in stores for name, ok in store.policy_episodes.items()},
            **({"takeovers": takeovers} if takeovers else {}),
        }
        lengths = [int(store.episode_ends[-1]) for store in stores]
        with self._new_writer(self.out, lengths, self._attributes | {"source": source}) as writer:
            for store in stores:
                writer.append({key: store.read(key) for key in (*self._keys, "action")})
            writer.finish({"check": not_verified(WHY_NOT_VERIFIED)})
        remove_folder(self.folder)
        return len(stores)

    def _new_writer(self, path: Path, lengths: list[int], attributes: dict[str, Any]) -> StoreWriter:
        """A writer of the store `path` that does not resume what a killed process left: those were other episodes."""
        return StoreWriter(path, self._task, lengths, attributes, 3, resumable=False)
