"""A policy as the agent of an episode: observations of the simulator in, numpy actions out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_cli.config import PolicyConfig
from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.errors import ConfigError, close_match
from ddp_cli.inference.folded_denoiser import FoldedDenoiser, compiled_denoiser, supports_folding
from ddp_cli.inference.onnx_policy import onnx_predictor
from ddp_cli.safety import Safety

Predict = Callable[[Mapping[str, Tensor], torch.Generator], Tensor]
"""From observations {key: (B, To, ...)} to actions (B, Ta, Da)."""

ENGINES = ("auto", "torch", "compile", "onnx")


class PolicyAgent:
    """Runs `policy` for one episode at a time, with noise that depends on the episode's seed alone.

    `engine` is what computes: torch, compile (torch.compile, with CUDA graphs on a GPU) or onnx
    (ONNX Runtime, on a CPU). auto takes onnx on a CPU, where it was measured to be the fastest, if the denoiser
    is one that it knows, and torch elsewhere.
    """

    def __init__(self, policy: DiffusionPolicy, engine: str = "auto") -> None:
        self.policy = policy
        self.obs: str = policy.config.obs
        self.actions: str = policy.config.actions
        self.n_obs_steps = policy.config.n_obs_steps
        self.n_action_steps = policy.config.n_action_steps
        self.engine = choose_engine(policy.config, policy.device.type, engine)
        self._predict = predictor(policy, self.engine)
        self._generator = torch.Generator(policy.device)

    @property
    def safety(self) -> Safety:
        return safety_of(self.policy)

    def reset(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def act(self, history: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.floating[Any]]:
        obs = to_batch(history, self.policy.device)
        return self._predict(obs, self._generator)[0].cpu().numpy()


def safety_of(policy: DiffusionPolicy) -> Safety:
    """What the actions of `policy` are kept inside of."""
    scale, offset = (policy.normalizer.get_buffer(f"action_{part}").tolist() for part in ("scale", "offset"))
    return Safety.from_normalizer(policy.config.actions, scale, offset)


def choose_engine(config: PolicyConfig, device: str, engine: str) -> str:
    """`torch` or `onnx`; ConfigError where that cannot run the policy."""
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine '{engine}'{close_match(engine, ENGINES)}", f"Valid: {', '.join(ENGINES)}.")
    able = device == "cpu" and supports_folding(config)
    if (engine == "onnx" and not able) or (engine == "compile" and not supports_folding(config)):
        why = (
            f"the policy is on {device}"
            if supports_folding(config)
            else "its memory is an encoder of its own, or inpainting"
        )
        raise ConfigError(f"the engine {engine} cannot run this policy: {why}.", "Use --engine torch.")
    return ("onnx" if able else "torch") if engine == "auto" else engine


def predictor(policy: DiffusionPolicy, engine: str) -> Predict:
    """`policy.predict_action` the way that `engine` goes."""
    if engine == "onnx":
        return onnx_predictor(policy, torch.get_num_threads())
    begin = None
    if supports_folding(policy.config):
        begin = FoldedDenoiser(policy, compiled_denoiser(policy.denoiser) if engine == "compile" else None).begin
    return lambda obs, generator: policy.predict_action(obs, generator, begin)["action"]


def to_batch(history: Sequence[Mapping[str, NDArray[Any]]], device: torch.device) -> dict[str, Tensor]:
    """To observations of one robot -> {key: (1, To, 3, H, W) uint8 or (1, To, d) float32}."""
    obs = {}
    for key in history[0]:
        x = torch.from_numpy(np.stack([frame[key] for frame in history]))[None].to(device)
        obs[key] = x.permute(0, 1, 4, 2, 3) if x.ndim == 5 else x
    return obs


def load_agent(
    checkpoint: Path, device: str, sampler: str | None, num_inference_steps: int | None, engine: str = "auto"
) -> PolicyAgent:
    """The agent of a checkpoint folder. On a CPU it uses one thread: sums, and so episodes, are then
    the same however many processes run beside it.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    policy, _ = load_policy(checkpoint, device)
    policy.set_sampler(sampler, num_inference_steps)
    return PolicyAgent(policy, engine)
