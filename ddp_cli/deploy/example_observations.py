"""Observations on which an exported policy is compared with its checkpoint."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.windows import Windows, window_bounds, window_steps
from ddp_cli.data.store import Store
from ddp_cli.inference.onnx_policy import obs_keys
from ddp_cli.sim.simulator import Simulator


def observations_from_store(keys: list[str], store: Store, n_obs_steps: int, count: int = 8) -> dict[str, Tensor]:
    """`count` observation windows at even distances in the store: {key: (count, To, ...)}."""
    bounds = window_bounds(store.episode_ends, n_obs_steps, 0, 0)
    steps = window_steps(bounds, n_obs_steps)[np.linspace(0, len(bounds) - 1, count).astype(int)]  # (count, To)
    arrays = {
        key: np.concatenate([store.read(key, rows=slice(w[0], w[-1] + 1)) for w in steps]) for key in (*keys, "action")
    }
    windows = Windows(arrays, np.arange(steps.size).reshape(steps.shape), keys, n_obs_steps)
    obs: dict[str, Tensor] = windows.batch(torch.arange(count))["obs"]
    return obs


def random_observations(policy: DiffusionPolicy, count: int = 4) -> dict[str, Tensor]:
    """`count` windows of random images, and vectors within the range of the training data: {key: (count, To, ...)}."""
    config, generator = policy.config, torch.Generator().manual_seed(0)
    windows = (count, config.n_obs_steps)
    obs = {}
    for key in obs_keys(policy):
        if key in config.image_keys:
            height, width, channels = config.task.images(config.obs)[key].shape
            obs[key] = torch.randint(256, (*windows, channels, height, width), generator=generator, dtype=torch.uint8)
        else:
            low, high = (torch.tensor(bound) for bound in policy.normalizer.bounds(key))
            obs[key] = low + (high - low) * torch.rand((*windows, len(low)), generator=generator)
    return obs


def observations_from_simulator(policy: DiffusionPolicy, render: str, count: int = 4) -> dict[str, Tensor]:
    """Observations of `count` initial states, for use without a store: {key: (count, To, ...)}."""
    sim = Simulator(policy.config.task, render, policy.config.actions)
    samples: dict[str, list[Tensor]] = {key: [] for key in obs_keys(policy)}
    for seed in range(count):
        sim.reset(seed)
        obs = sim.observe(policy.config.obs)
        for key, windows in samples.items():
            window = torch.from_numpy(np.stack([obs[key]] * policy.config.n_obs_steps))
            windows.append(window.permute(0, 3, 1, 2) if window.ndim == 4 else window)
    sim.close()
    return {key: torch.stack(windows) for key, windows in samples.items()}
