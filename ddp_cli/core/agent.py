"""A policy as the agent of an episode: observations of the simulator in, numpy actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.sim.safety import Safety


class PolicyAgent:
    """Runs `policy` for one episode at a time, with noise that depends on the episode's seed alone."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        self.policy = policy
        self.obs: str = policy.config.obs
        self.actions: str = policy.config.actions
        self.n_obs_steps = policy.config.n_obs_steps
        self.n_action_steps = policy.config.n_action_steps
        self._generator = torch.Generator(policy.device)

    @property
    def safety(self) -> Safety:
        normalizer = self.policy.normalizer
        scale, offset = (normalizer.get_buffer(f"action_{part}").tolist() for part in ("scale", "offset"))
        return Safety.of_normalizer(self.actions, scale, offset)

    def reset(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def act(self, history: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.floating[Any]]:
        obs = to_batch(history, self.policy.device)
        return self.policy.predict_action(obs, self._generator)["action"][0].cpu().numpy()


def to_batch(history: Sequence[Mapping[str, NDArray[Any]]], device: torch.device) -> dict[str, Tensor]:
    """To observations of one robot -> {key: (1, To, 3, H, W) uint8 or (1, To, d) float32}."""
    obs = {}
    for key in history[0]:
        x = torch.from_numpy(np.stack([frame[key] for frame in history]))[None].to(device)
        obs[key] = x.permute(0, 1, 4, 2, 3) if x.ndim == 5 else x
    return obs


def load_agent(checkpoint: Path, device: str, sampler: str | None, num_inference_steps: int | None) -> PolicyAgent:
    """The agent of a checkpoint folder. On a CPU it uses one thread: sums, and so episodes, are then
    the same however many processes run beside it.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    policy, _ = load_policy(checkpoint, device)
    policy.set_sampler(sampler, num_inference_steps)
    return PolicyAgent(policy)
