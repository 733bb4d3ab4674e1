"""Training data: loading a store into memory or from disk, and preparing batches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_cli.core.windows import Batch, Windows, batch_indices, count_windows, window_bounds, window_steps
from ddp_cli.data.image_cache import DecodedArrays, decode_arrays
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError, DataError
from ddp_cli.memory import memory_budget
from ddp_cli.parallel import default_workers
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.validation_split import validation_episodes

MAX_GPU_FRACTION = 0.4  # of the free GPU memory that the dataset may occupy


@dataclass(frozen=True)
class TrainingData:
    """Training and validation windows over the same arrays, split by episode."""

    train: Windows
    val: Windows
    n_episodes: int
    """Episodes in the store."""
    n_used: int
    """Those that have windows."""
    n_held_out: int
    """Those that have validation windows."""
    min_steps: int
    """Steps that an episode needs to have a window."""

    def describe(self) -> str:
        """How many episodes and windows are trained on."""
        held_out = f", {self.n_held_out} of them held out ({len(self.val)} windows)" if self.n_held_out else ""
        return f"{self.n_used} of {self.n_episodes} demonstrations{held_out}, {len(self.train)} windows to train on"


def load_training_data(
    config: TrainConfig,
    store: Store,
    device: torch.device,
    info: Callable[[str], None],
    budget: float | None = None,
    write: bool = True,
) -> TrainingData:
    """Load the observations and actions that the policy is trained on.

    Images that exceed `budget` [bytes] (None: `memory_budget`) stay on disk, see `data/image_cache.py`; with `write`
    this process may decode them there. Arrays are moved to the GPU if they fit in its memory.

    Raises ConfigError if no demonstration to train on fits the horizon, DataError for values that are not finite.
    """
    policy = config.policy
    keys = [*policy.image_keys, *policy.low_dim]
    extra = ["object"] if config.object_weight else []
    budget = memory_budget(config.memory_gb) if budget is None else budget
    arrays = decode_arrays(store, [*keys, *extra, "action"], budget, info, write, config.cache_dir)
    for key in (*policy.low_dim, *extra, "action"):
        _check_finite(store, key, arrays.data[key])
    held_out = validation_episodes(len(store.episode_ends), config.val_ratio, config.seed)
    data_device = _choose_device(arrays, device)
    tensors = {k: torch.from_numpy(np.asanyarray(a)).to(data_device) for k, a in arrays.data.items()}
    release = arrays.release_pages if arrays.memory_maps else None
    splits, counts = [], []
    for mask in (~held_out, held_out):
        bounds = window_bounds(
            store.episode_ends, policy.horizon, policy.pad_before, policy.pad_after, mask, config.pad_short
        )
        indices = window_steps(bounds, policy.horizon)
        splits.append(Windows(tensors, indices, keys, policy.n_encoded_steps, extra, data_device, release))
        counts.append(count_windows(store.episode_ends, bounds))
    if not len(splits[0]):
        longest = int(np.diff(store.episode_ends, prepend=0)[~held_out].max())
        raise ConfigError(
            f"no demonstration in '{store.path}' is long enough for horizon {policy.horizon}.",
            f"The longest to train on has {longest} steps: set a shorter horizon, or --set pad_short=true.",
        )
    min_steps = 1 if config.pad_short else max(1, policy.horizon - policy.pad_before - policy.pad_after)
    n_used, n_held_out = int(np.count_nonzero(sum(counts))), int(np.count_nonzero(counts[1]))
    return TrainingData(splits[0], splits[1], len(held_out), n_used, n_held_out, min_steps)


def _check_finite(store: Store, key: str, values: NDArray[Any]) -> None:
    faulty = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(faulty):
        episode = int(np.searchsorted(store.episode_ends, faulty[0], side="right"))
        raise DataError(
            f"'{store.path}': data/{key} is not finite in {len(faulty)} steps, the first is in episode {episode}.",
            "Convert the demonstrations again.",
        )


def _choose_device(arrays: DecodedArrays, device: torch.device) -> torch.device:
    """Where to keep the arrays: on the GPU if they fit, otherwise on the host."""
    if device.type != "cuda" or arrays.memory_maps:
        return torch.device("cpu")
    size = sum(a.nbytes for a in arrays.data.values())
    free, _ = torch.cuda.mem_get_info(device)
    return device if size < MAX_GPU_FRACTION * free else torch.device("cpu")


class BatchLoader:
    """Batches by training step: the `shard` of each global batch that this process trains on.

    Batch i depends only on (seed, i). Threads prefetch batches where the device would otherwise wait: for images on
    disk, and for a GPU whose data is on the host. From memory, a batch takes a hundredth of a step and is made on
    demand.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, shard: slice, device: torch.device) -> None:
        self.windows, self.batch_size, self.seed, self.shard = windows, batch_size, seed, shard
        self.pin_memory = device.type == "cuda" and windows.device.type == "cpu"
        prefetch = self.pin_memory or windows.on_disk
        self.n_threads = max(1, min(4, default_workers() - 1)) if prefetch else 0
        self._pool = ThreadPoolExecutor(self.n_threads) if self.n_threads else None
        self._prefetched: dict[int, Future[Batch]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of training step `step`, on the device of the windows."""
        if self._pool is None:
            return self._make(step)
        steps = range(step, step + 1 + self.n_threads)
        self._prefetched = {i: self._prefetched.get(i) or self._pool.submit(self._make, i) for i in steps}
        return self._prefetched.pop(step).result()

    def _make(self, step: int) -> Batch:
        index = batch_indices(len(self.windows), self.batch_size, step, self.seed)[self.shard]
        batch = self.windows.batch(index)
        if not self.pin_memory:
            return batch
        obs = {key: x.pin_memory() for key, x in batch["obs"].items()}
        return {key: x.pin_memory() for key, x in batch.items() if key != "obs"} | {"obs": obs}
