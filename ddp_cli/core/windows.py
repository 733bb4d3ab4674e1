"""Observation / action windows over episodes, and batches of them.

A window is `horizon` steps of one episode. It may begin `pad_before` steps before the episode and end
`pad_after` steps behind it; the missing steps repeat the episode's first and last one, so that the
policy learns to start from a single observation and to act until the end.

Shapes: B batch, To n_obs_steps, T horizon, M windows, N steps in the store.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = dict[str, Any]
CPU = torch.device("cpu")


def validation_episodes(episodes: int, val_ratio: float, seed: int) -> NDArray[np.bool_]:
    """Which episodes are held out (E,): round(E * ratio), at least 1 and leaving at least 1."""
    mask = np.zeros(episodes, dtype=bool)
    if val_ratio <= 0 or episodes < 2:
        return mask
    count = min(max(1, round(episodes * val_ratio)), episodes - 1)
    mask[np.random.default_rng(seed).choice(episodes, size=count, replace=False)] = True
    return mask


def window_bounds(
    episode_ends: NDArray[np.int64],
    horizon: int,
    pad_before: int,
    pad_after: int,
    episode_mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """(M, 4) of (buffer_start, buffer_end, sample_start, sample_end), the field's convention.

    Steps [buffer_start, buffer_end) of the store fill positions [sample_start, sample_end) of the
    window; positions before and after repeat the nearest step. `episode_mask` selects episodes.
    """
    pad_before, pad_after = min(pad_before, horizon - 1), min(pad_after, horizon - 1)
    rows = []
    starts = np.concatenate([[0], episode_ends[:-1]])
    for i, (begin, end) in enumerate(zip(starts, episode_ends, strict=True)):
        if episode_mask is not None and not episode_mask[i]:
            continue
        first = np.arange(begin - pad_before, end - horizon + pad_after + 1)
        low, high = np.maximum(first, begin), np.minimum(first + horizon, end)
        rows.append(np.stack([low, high, low - first, high - first], axis=1))
    return np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)


def window_steps(bounds: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """(M, T) index into the store of every position of every window, padding included."""
    start = bounds[:, 0] - bounds[:, 2]
    return np.clip(start[:, None] + np.arange(horizon), bounds[:, :1], bounds[:, 1:2] - 1)


class Windows:
    """All windows over arrays: uint8 images (N, H, W, 3), float32 low-dim and action (N, d).

    The arrays are in memory, on `device` (moved there if they are not), or memory-mapped: then `release` is
    called after they were read.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any] | Tensor],
        steps: NDArray[np.int64],
        obs_keys: Sequence[str],
        n_obs_steps: int,
        extra_keys: Sequence[str] = (),
        device: torch.device = CPU,
        release: Callable[[], None] | None = None,
    ) -> None:
        keys = (*obs_keys, *extra_keys, "action")
        self.arrays = {k: torch.as_tensor(arrays[k]).to(device) for k in keys}
        self.steps = torch.from_numpy(steps).to(device)
        self.obs_keys, self.extra_keys, self.n_obs_steps = obs_keys, extra_keys, n_obs_steps
        self.device, self.on_disk, self._release = device, release is not None, release

    def __len__(self) -> int:
        return len(self.steps)

    def batch(self, index: Tensor) -> Batch:
        """Windows `index` (B,): obs {key: (B, To, 3, H, W) uint8 or (B, To, d)}, action (B, T, Da).

        Only the frames that are looked at are read: the first n_obs_steps.
        """
        steps = self.steps[upload(index, self.device)]
        first = steps[:, : self.n_obs_steps]
        obs = {}
        for key in self.obs_keys:
            seen = self.arrays[key][first]
            obs[key] = seen.permute(0, 1, 4, 2, 3) if seen.ndim == 5 else seen
            if self._release:
                self._release()
        extra = {key: self.arrays[key][first] for key in self.extra_keys}
        return {"obs": obs, **extra, "action": self.arrays["action"][steps]}


def upload(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`, without waiting for it."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`."""
    moved = {k: upload(v, device) for k, v in batch.items() if k != "obs"}
    return moved | {"obs": {k: upload(v, device) for k, v in batch["obs"].items()}}


def part(batch: Batch, rows: slice) -> Batch:
    """Some samples of the batch."""
    return {k: v[rows] for k, v in batch.items() if k != "obs"} | {"obs": {k: v[rows] for k, v in batch["obs"].items()}}


def batch_index(windows: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which windows (B,) make up training step `step`: an endless stream of permutations.

    A function of its arguments alone, so a resumed run needs no sampler state.
    """
    first = step * batch_size
    parts = []
    while first < (step + 1) * batch_size:
        epoch, offset = divmod(first, windows)
        piece = _order(windows, seed, epoch)[offset : offset + (step + 1) * batch_size - first]
        parts.append(piece)
        first += len(piece)
    return torch.cat(parts)


@functools.lru_cache(maxsize=2)
def _order(windows: int, seed: int, epoch: int) -> Tensor:
    """The permutation of pass `epoch` over the windows."""
    return torch.randperm(windows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
