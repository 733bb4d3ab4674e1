"""Windows of observations and actions over episodes, and batches of them.

A window is `horizon` consecutive steps of one episode. It may begin up to `pad_before` steps before the episode and end
up to `pad_after` steps after it; the missing steps repeat the first or last step of the episode. So the policy learns
to start from a single observation, and to act until the end. An episode that is too short even so has no window, unless
it is padded: see `window_bounds`.

Shapes: B batch, To n_obs_steps, T horizon, M windows, N steps in the store, E episodes, d width of a vector.
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
SEED_STRIDE = 1_000_003  # so that consecutive seeds of a run share no generator of an epoch, or of a training step


def window_bounds(
    episode_ends: NDArray[np.int64],
    horizon: int,
    pad_before: int,
    pad_after: int,
    episode_mask: NDArray[np.bool_] | None = None,
    pad_short: bool = False,
) -> NDArray[np.int64]:
    """(M, 4) of (buffer_start, buffer_end, sample_start, sample_end), as in the published replay buffer.

    Steps [buffer_start, buffer_end) of the store fill positions [sample_start, sample_end) of the window; positions
    before and after repeat the nearest step. `episode_mask` (E,) selects episodes. With `pad_short`, episodes shorter
    than `horizon` are first padded to that length by repetition of their last step; windows of nothing but that
    repetition are left out.
    """
    pad_before, pad_after = min(pad_before, horizon - 1), min(pad_after, horizon - 1)
    bounds = []
    episode_starts = np.concatenate([[0], episode_ends[:-1]])
    for i, (start, end) in enumerate(zip(episode_starts, episode_ends, strict=True)):
        if episode_mask is not None and not episode_mask[i]:
            continue
        padded_end = max(end, start + horizon) if pad_short else end
        first = np.arange(start - pad_before, min(padded_end - horizon + pad_after + 1, end))
        low, high = np.maximum(first, start), np.minimum(first + horizon, end)
        bounds.append(np.stack([low, high, low - first, high - first], axis=1))
    return np.concatenate(bounds) if bounds else np.zeros((0, 4), np.int64)


def count_windows(episode_ends: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """(E,) number of the windows `bounds` in each episode."""
    return np.bincount(np.searchsorted(episode_ends, bounds[:, 0], side="right"), minlength=len(episode_ends))


def window_steps(bounds: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """(M, T) index into the store of every position of every window, padding included."""
    start = bounds[:, 0] - bounds[:, 2]
    return np.clip(start[:, None] + np.arange(horizon), bounds[:, :1], bounds[:, 1:2] - 1)


class Windows:
    """All windows over arrays of a store: uint8 images (N, H, W, 3), float32 vectors and actions (N, d).

    The arrays are moved to `device`, or memory-mapped from disk: then `release` is called after every read.
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

        Only the first n_obs_steps observations of each window are read.
        """
        steps = self.steps[to_device_async(index, self.device)]
        obs_steps = steps[:, : self.n_obs_steps]
        obs = {}
        for key in self.obs_keys:
            value = _rows(self.arrays[key], obs_steps)
            obs[key] = value.permute(0, 1, 4, 2, 3) if value.ndim == 5 else value
            if self._release:
                self._release()
        extra = {key: _rows(self.arrays[key], obs_steps) for key in self.extra_keys}
        return {"obs": obs, **extra, "action": _rows(self.arrays["action"], steps)}


def _rows(array: Tensor, steps: Tensor) -> Tensor:
    """`array[steps]`; on a CPU this copies whole images at once, an index value by value."""
    return array.index_select(0, steps.flatten()).unflatten(0, steps.shape)


def to_device_async(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; copies to a GPU are asynchronous."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`."""
    return _map_tensors(batch, lambda x: to_device_async(x, device))


def slice_batch(batch: Batch, rows: slice) -> Batch:
    """The samples `rows` of the batch."""
    return _map_tensors(batch, lambda x: x[rows])


def _map_tensors(batch: Batch, fn: Callable[[Tensor], Tensor]) -> Batch:
    top_level = {k: fn(v) for k, v in batch.items() if k != "obs"}
    return top_level | {"obs": {k: fn(v) for k, v in batch["obs"].items()}}


def batch_indices(n_windows: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices (B,) of the windows of training step `step`, from an endless sequence of permutations.

    Depends on the arguments alone, so a resumed run needs no sampler state.
    """
    start, end = step * batch_size, (step + 1) * batch_size
    chunks = []
    while start < end:
        epoch, offset = divmod(start, n_windows)
        chunk = _permutation(n_windows, seed, epoch)[offset : offset + end - start]
        chunks.append(chunk)
        start += len(chunk)
    return torch.cat(chunks)


@functools.lru_cache(maxsize=2)
def _permutation(n_windows: int, seed: int, epoch: int) -> Tensor:
    """The order of the windows in one epoch."""
    return torch.randperm(n_windows, generator=torch.Generator().manual_seed(seed * SEED_STRIDE + epoch))
