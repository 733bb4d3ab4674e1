"""What computes the action chunks of a policy: torch, torch.compile or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import torch
from torch import Tensor

from ddp_cli.choices import Engine
from ddp_cli.config import PolicyConfig
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.inference.compiled_denoiser import make_compiled_denoise_fn
from ddp_cli.inference.folded_denoiser import FoldedDenoiser, supports_folding
from ddp_cli.inference.onnx_policy import make_onnx_predict_fn

PredictFn = Callable[[Mapping[str, Tensor], torch.Generator], Tensor]
"""(observations {key: (B, To, ...)}, generator of the noise) -> actions (B, Ta, Da)."""


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
