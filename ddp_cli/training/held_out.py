"""Chunks of a policy and of two baselines on recorded episodes that it was not trained on.

The baselines: hold the last recorded action, and the recorded actions of the nearest training window, by vectors scaled
to their range and images reduced to 8x8 pixels.

Shapes: N steps of the store, To observations, Ta steps of a chunk, Da action, F features of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.evaluation.open_loop import BASELINES, POLICY, EpisodeChunks
from ddp_cli.evaluation.rollout import Agent, clamp_chunk
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.training.run_folder import store_identity
from ddp_cli.training.validation_split import validation_episodes

MAX_CHUNKS = 1000  # per evaluation, unless the chunks that would be executed are more
THUMBNAIL = 8  # [pixels]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Episodes of a store that a policy was trained on, and others. `doubt`: why this is not known, empty if it is."""

    train: list[int]
    held_out: list[int]
    doubt: str = ""


def split_episodes(store: Store, meta: Mapping[str, Any]) -> Split:
    """The split of the training, if `store` is the one of `meta`, the metadata of a policy. Otherwise every episode is
    held out, and the nearest windows are those of the other episodes.
    """
    n, identity, train = len(store.episode_ends), store_identity(store), meta.get("train") or {}
    # Early checkpoints do not hold the hash of the observations.
    trained_on = {"observations_sha256": identity["observations_sha256"]} | (meta.get("store") or {})
    hashes = ("actions_sha256", "observations_sha256")
    if not all(trained_on.get(key) == identity[key] for key in hashes) or "val_ratio" not in train:
        return Split(list(range(n)), list(range(n)), f"'{store.path}' is not the store of the training")
    mask = validation_episodes(n, float(train["val_ratio"]), int(train["seed"]))
    if not mask.any():
        raise DataError(
            f"the policy was trained on all {n} episodes of '{store.path}' (val_ratio {train['val_ratio']}).",
            "Name other data with --data.",
        )
    origin = meta.get("init_from")
    doubt = f"the training started from the weights of '{origin}'" if origin else ""
    return Split(np.flatnonzero(~mask).tolist(), np.flatnonzero(mask).tolist(), doubt)


def predict_episodes(
    agent: Agent, config: PolicyConfig, store: Store, split: Split, episodes: Sequence[int], done: Callable[[int], None]
) -> list[EpisodeChunks]:
    """The chunks of `episodes`; `done` is called with the number of finished ones."""
    actions = store.read("action").astype(np.float64)
    steps_per_episode = np.diff(store.episode_ends, prepend=0)
    stride = _stride(int(steps_per_episode[list(episodes)].sum()), config.n_action_steps)
    nearest = _NearestWindows(config, store, split)
    results = []
    for i in episodes:
        begin, end = store.episode_bounds[i]
        starts = np.arange(begin + 1, end, stride)  # the action before the first chunk is known
        if not len(starts):
            raise DataError(f"'{store.path}' episode {i} has a single step.", "Leave it out when converting.")
        obs = {key: store.read(key, rows=slice(begin, end)) for key in (*config.cameras, *config.low_dim)}
        agent.reset(i)
        recorded = _chunks(actions, starts, config.n_action_steps, end)
        predicted = np.empty_like(recorded)
        for j, start in enumerate(starts):
            observed = np.maximum(np.arange(start - config.n_obs_steps + 1, start + 1), begin) - begin
            history = [{key: values[step] for key, values in obs.items()} for step in observed]
            chunk = clamp_chunk(
                agent.action_limits, agent.act(history), actions[start - 1], f"episode {i}, step {start - begin}"
            )
            predicted[j] = chunk
        held = np.repeat(actions[starts - 1][:, None], config.n_action_steps, axis=1)
        methods = {POLICY: predicted, "hold": held, "nearest": nearest.chunks(i, starts)}
        assert methods.keys() == {POLICY, *BASELINES}
        results.append(EpisodeChunks(store.episode_names[i], starts - begin, recorded, methods))
        done(len(results))
    return results


def _stride(n_steps: int, n_action_steps: int) -> int:
    """Steps between chunks: a divisor of `n_action_steps`, so that the executed chunks are among them."""
    divisors = [d for d in range(1, n_action_steps + 1) if n_action_steps % d == 0]
    return next((d for d in divisors if n_steps / d <= MAX_CHUNKS), n_action_steps)


def _chunks(actions: Array, starts: NDArray[np.int64], length: int, end: int) -> Array:
    """(K, length, Da) actions from each start on; nan from `end` on."""
    steps = starts[:, None] + np.arange(length)
    return np.where((steps < end)[..., None], actions[np.minimum(steps, end - 1)], np.nan)


class _NearestWindows:
    """Recorded actions that follow the most similar observations of the training episodes."""

    def __init__(self, config: PolicyConfig, store: Store, split: Split) -> None:
        self._config, self._bounds = config, store.episode_bounds
        self._actions = store.read("action").astype(np.float64)
        self._features = np.concatenate([*self._vector_features(store), *self._image_features(store)], axis=1)
        self._norms = np.square(self._features).sum(1)
        starts = np.zeros(len(self._features), np.int64)  # first and one past the last step of the episode of a step
        ends = starts.copy()
        for begin, end in self._bounds:
            starts[begin:end], ends[begin:end] = begin, end
        self._starts, self._ends = starts, ends
        self._candidates = np.concatenate([np.arange(*self._bounds[i]) for i in split.train])

    def _vector_features(self, store: Store) -> list[NDArray[np.float32]]:
        features = []
        for key in self._config.low_dim:
            values = store.read(key)
            low, high = values.min(0), values.max(0)
            features.append(self._weighted((values - low) / np.maximum(high - low, 1e-6) * 2 - 1))
        return features

    def _image_features(self, store: Store) -> list[NDArray[np.float32]]:
        features = []
        for key in self._config.cameras:
            parts = [_thumbnails(store.read(key, rows=slice(begin, end))) for begin, end in self._bounds]
            features.append(self._weighted(np.concatenate(parts)))
        return features

    def _weighted(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Scaled so that every key counts the same in a sum of squared differences."""
        return (values / np.sqrt(values.shape[1])).astype(np.float32)

    def chunks(self, episode: int, steps: NDArray[np.int64]) -> Array:
        """(K, Ta, Da): the actions from the step on whose last To observations are most like those before `steps`; nan
        where there is no other episode.
        """
        begin, end = self._bounds[episode]
        candidates = self._candidates[(self._candidates < begin) | (self._candidates >= end)]
        if not len(candidates):
            return np.full((len(steps), self._config.n_action_steps, self._actions.shape[1]), np.nan)
        distances = np.zeros((len(steps), len(candidates)), np.float32)
        for back in range(self._config.n_obs_steps):
            query = np.maximum(steps - back, self._starts[steps])
            other = np.maximum(candidates - back, self._starts[candidates])
            distances += self._norms[other] - 2 * self._features[query] @ self._features[other].T
        found = candidates[distances.argmin(1)]
        rows = found[:, None] + np.arange(self._config.n_action_steps)
        return self._actions[np.minimum(rows, self._ends[found][:, None] - 1)]


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images (n, H, W, C) as (n, F) block means, from -1 to 1."""
    n, height, width, channels = images.shape
    rows, columns = min(THUMBNAIL, height), min(THUMBNAIL, width)
    cropped = images[:, : height // rows * rows, : width // columns * columns]
    blocks = cropped.reshape(n, rows, height // rows, columns, width // columns, channels)
    return (blocks.mean((2, 4), dtype=np.float32) / 127.5 - 1).reshape(n, -1)
