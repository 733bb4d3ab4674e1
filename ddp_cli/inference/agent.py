"""The agent of a policy: observations of the simulator in, numpy actions out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_cli.choices import Engine
from ddp_cli.config import PolicyConfig
from ddp_cli.core.checkpoint import CONFIG, Meta, load_policy
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.errors import CheckpointError, ConfigError, UnknownNameError
from ddp_cli.inference.compiled_denoiser import make_compiled_denoise_fn
from ddp_cli.inference.folded_denoiser import FoldedDenoiser, supports_folding
from ddp_cli.inference.onnx_policy import make_onnx_predict_fn
from ddp_cli.safety import ActionLimits

PredictFn = Callable[[Mapping[str, Tensor], torch.Generator], Tensor]
"""(observations {key: (B, To, ...)}, generator of the noise) -> actions (B, Ta, Da)."""


class PolicyAgent:
    """Runs `policy` in one episode at a time; the noise depends on the episode's seed alone.

    `engine`: torch, compile (torch.compile, with CUDA graphs on a GPU), onnx (ONNX Runtime, CPU only) or auto (onnx on
    a CPU, where it was measured to be the fastest, if the denoiser supports it; torch elsewhere).
    `limits` of the actions: by default those that follow from the normalizer.
    """

    def __init__(self, policy: DiffusionPolicy, engine: str = "auto", limits: ActionLimits | None = None) -> None:
        self.policy = policy
        self.action_limits = limits or action_limits(policy, {})
        self.obs: str = policy.config.obs
        self.actions: str = policy.config.actions
        self.n_obs_steps = policy.config.n_obs_steps
        self.n_action_steps = policy.config.n_action_steps
        self.engine = choose_engine(policy.config, policy.device.type, engine)
        self._predict = make_predict_fn(policy, self.engine)
        self._generator = torch.Generator(policy.device)

    def reset(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def act(self, history: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.floating[Any]]:
        """The action chunk (Ta, Da) for the last To observations, not yet limited."""
        obs = history_to_batch(history, self.policy.device)
        return self._predict(obs, self._generator)[0].cpu().numpy()


def action_limits(policy: DiffusionPolicy, meta: Meta) -> ActionLimits:
    """The limits that the actions of `policy` are clamped to. `meta` is the content of its checkpoint's config.json.

    Absolute positions: the range that the checkpoint records, or else the one that follows from the normalizer, plus a
    margin. CheckpointError if that is not a range.
    """
    recorded: Any = meta.get("action_range")
    try:
        if recorded:
            return ActionLimits.from_range(policy.config.actions, recorded["low"], recorded["high"])
        scale, offset = (policy.normalizer.get_buffer(f"action_{part}").tolist() for part in ("scale", "offset"))
        return ActionLimits.from_normalizer(policy.config.actions, scale, offset)
    except (ValueError, KeyError, TypeError) as e:
        source = f"action_range in {CONFIG}" if recorded else "the action normalizer"
        raise CheckpointError(
            f"{source} is not a range of positions: {type(e).__name__} {e}.", "Use another checkpoint."
        ) from e


def choose_engine(config: PolicyConfig, device: str, engine: str) -> str:
    """`engine` with auto resolved; ConfigError if it is unknown or cannot run the policy on `device`."""
    if engine not in get_args(Engine):
        raise UnknownNameError("engine", engine, get_args(Engine))
    can_fold = supports_folding(config)
    if engine == "auto":
        return "onnx" if can_fold and device == "cpu" else "torch"
    if engine != "torch" and not can_fold:
        reason = "it has n_cond_layers or uses inpainting"
    elif engine == "onnx" and device != "cpu":
        reason = f"it is on {device}"
    else:
        return engine
    raise ConfigError(f"the engine {engine} cannot run this policy: {reason}.", "Use --engine torch.")


def make_predict_fn(policy: DiffusionPolicy, engine: str) -> PredictFn:
    """`policy.predict_action(...)["action"]`, computed by `engine`."""
    if engine == "onnx":
        return make_onnx_predict_fn(policy, torch.get_num_threads())
    make_denoiser = None
    if supports_folding(policy.config):
        denoise_fn = make_compiled_denoise_fn(policy.denoiser) if engine == "compile" else None
        make_denoiser = FoldedDenoiser(policy, denoise_fn).condition_on
    return lambda obs, generator: policy.predict_action(obs, generator, make_denoiser)["action"]


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
