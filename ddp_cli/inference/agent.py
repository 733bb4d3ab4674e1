"""The agent of a policy: observations of the simulator in, numpy actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_cli.action_limits import ActionLimits
from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.inference.engine import choose_engine, make_predict_fn
from ddp_cli.inference.policy_limits import action_limits


class PolicyAgent:
    """Runs `policy` in one episode at a time; the noise depends on the episode's seed alone.

    `engine`: torch, compile (torch.compile), onnx (ONNX Runtime, CPU only) or auto (onnx on
    a CPU, where it was measured to be the fastest, if the denoiser supports it; torch elsewhere).
    `limits` of the actions: by default those that follow from the normalizer. `inpainting_steps`: the longest prefix
    of a policy that was trained without (`DiffusionPolicy.set_inpainting_steps`).
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        engine: str = "auto",
        limits: ActionLimits | None = None,
        inpainting_steps: int = 0,
    ) -> None:
        if inpainting_steps:
            policy.set_inpainting_steps(inpainting_steps)
        self.policy = policy
        self.action_limits = limits or action_limits(policy, {})
        self.obs: str = policy.config.obs
        self.actions: str = policy.config.actions
        self.n_obs_steps = policy.config.n_obs_steps
        self.n_action_steps = policy.config.n_action_steps
        self.prefix_steps = policy.config.prefix_steps
        self.control_hz = policy.config.task.schema.rate
        self.engine = choose_engine(policy.config, policy.device.type, engine)
        self._predict = make_predict_fn(policy, self.engine)
        self._generator = torch.Generator()

    def reset(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def act(
        self, history: Sequence[Mapping[str, NDArray[Any]]], prefix: NDArray[np.floating[Any]] | None = None
    ) -> NDArray[np.floating[Any]]:
        """The action chunk (Ta, Da) for the last To observations, not yet limited. It starts with the actions `prefix`
        (P, Da), at most `prefix_steps`.
        """
        obs = history_to_batch(history, self.policy.device)
        prefix_batch = None if prefix is None else torch.as_tensor(prefix, dtype=torch.float32)[None]
        return self._predict(obs, self._generator, prefix_batch)[0].cpu().numpy()


def history_to_batch(history: Sequence[Mapping[str, NDArray[Any]]], device: torch.device) -> dict[str, Tensor]:
    """To observations of one robot -> {key: (1, To, 3, H, W) uint8 or (1, To, d) float32}."""
    obs = {}
    for key in history[0]:
        x = torch.from_numpy(np.stack([step[key] for step in history]))[None].to(device)
        obs[key] = x.permute(0, 1, 4, 2, 3) if x.ndim == 5 else x
    return obs


def load_agent(
    checkpoint: Path, device: str, sampler: str | None, num_inference_steps: int | None, engine: str = "auto"
) -> PolicyAgent:
    """The agent of a checkpoint folder. On a CPU torch is limited to one thread: floating-point sums, and so episodes,
    then do not depend on the number of processes that run in parallel.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    policy, meta = load_policy(checkpoint, device)
    policy.set_sampler(sampler, num_inference_steps)
    return PolicyAgent(policy, engine, action_limits(policy, meta))
