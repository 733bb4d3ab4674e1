"""From a store to batches: what is in memory, what stays on disk, and who prepares the next batch."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ddp_cli.config import TrainConfig
from ddp_cli.core.windows import Batch, Windows, batch_index, validation_episodes, window_bounds, window_steps
from ddp_cli.data.image_cache import Arrays, Note, available_memory, decode
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError, DataError
from ddp_cli.parallel import default_workers

GPU_SHARE = 0.4  # of a GPU's free memory that the dataset may take


@dataclass(frozen=True)
class TrainingData:
    """Training and validation windows over the same arrays, split by episode."""

    train: Windows
    val: Windows


def memory_budget(config: TrainConfig) -> float:
    """Bytes that decoded pictures may take on this machine."""
    return config.memory_gb * 1e9 or available_memory() / 2


def load_training_data(
    config: TrainConfig,
    store: Store,
    device: torch.device,
    note: Note,
    budget: float | None = None,
    write: bool = True,
) -> TrainingData:
    """Reads what the policy looks at.

    Pictures that take more than `budget` bytes (None: `memory_budget`) stay on disk, see `data/image_cache.py`;
    `write` says whether this process may decode them there. On a GPU with room for them all arrays live there.
    """
    policy = config.policy
    keys = [*policy.image_keys, *policy.low_dim]
    extra = ["object"] if config.object_weight else []
    steps = int(store.episode_ends[-1])
    for key in (*keys, *extra, "action"):
        if store.shape(key)[0] != steps:
            raise DataError(
                f"'{store.path}': data/{key} has {store.shape(key)[0]} steps, expected {steps}.",
                "Convert the demos again.",
            )
    arrays = decode(store, [*keys, *extra, "action"], memory_budget(config) if budget is None else budget, note, write)
    held_out = validation_episodes(len(store.episode_ends), config.val_ratio, config.seed)
    place = _place(arrays, device)
    tensors = {k: torch.from_numpy(np.asanyarray(a)).to(place) for k, a in arrays.data.items()}
    release = arrays.release if arrays.mapped else None
    parts = []
    for mask in (~held_out, held_out):
        bounds = window_bounds(store.episode_ends, policy.horizon, policy.pad_before, policy.pad_after, mask)
        indices = window_steps(bounds, policy.horizon)
        parts.append(Windows(tensors, indices, keys, policy.frames, extra, place, release))
    if not len(parts[0]):
        raise ConfigError(
            f"no demo of '{store.path}' is long enough for horizon {policy.horizon}.",
            f"The longest has {int(np.diff(store.episode_ends, prepend=0).max())} steps: set a shorter horizon.",
        )
    return TrainingData(*parts)


def _place(arrays: Arrays, device: torch.device) -> torch.device:
    """Where the arrays live: on the GPU when there is room, otherwise on the host."""
    if device.type != "cuda" or arrays.mapped:
        return torch.device("cpu")
    size = sum(a.nbytes for a in arrays.data.values())
    free, _ = torch.cuda.mem_get_info(device)
    return device if size < GPU_SHARE * free else torch.device("cpu")


class Loader:
    """Batches of training steps: this process's `share` of each global batch.

    Batch i is a function of (seed, i) alone. Threads prepare batches ahead where the device would otherwise
    wait: for pictures on disk, and for a GPU whose data is on the host. In memory, a batch costs a
    hundredth of a step and is made when it is asked for.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, share: slice, device: torch.device) -> None:
        self.windows, self.batch_size, self.seed, self.share = windows, batch_size, seed, share
        on_host = device.type == "cuda" and windows.device.type == "cpu"
        self.pin = on_host
        self.threads = max(1, min(4, default_workers() - 1)) if on_host or windows.on_disk else 0
        self._pool = ThreadPoolExecutor(self.threads) if self.threads else None
        self._ahead: dict[int, Future[Batch]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of training step `step`, where the windows are."""
        if self._pool is None:
            return self._make(step)
        wanted = range(step, step + 1 + self.threads)
        self._ahead = {i: self._ahead[i] if i in self._ahead else self._pool.submit(self._make, i) for i in wanted}
        return self._ahead.pop(step).result()

    def _make(self, step: int) -> Batch:
        index = batch_index(len(self.windows), self.batch_size, step, self.seed)[self.share]
        batch = self.windows.batch(index)
        if not self.pin:
            return batch
        obs = {key: x.pin_memory() for key, x in batch["obs"].items()}
        return {key: x.pin_memory() for key, x in batch.items() if key != "obs"} | {"obs": obs}
