"""What computes the action chunks of a policy: torch, torch.compile or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import torch
from torch import Tensor

from ddp_cli.choices import Engine
from ddp_cli.config import PolicyConfig
from ddp_cli.core.cuda_graph import GraphedFunction
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.inference.compiled_policy import compile_function
from ddp_cli.inference.folded_denoiser import FoldedDenoiser, make_torch_denoise_fn, supports_folding
from ddp_cli.inference.onnx_policy import make_onnx_predict_fn

NOISE = "noise"  # among the inputs of a prediction, beside the observations

PredictFn = Callable[[Mapping[str, Tensor], torch.Generator], Tensor]
"""(observations {key: (B, To, ...)}, generator of the noise, on the CPU) -> actions (B, Ta, Da)."""


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
    """`policy.predict_action(...)["action"]`, computed by `engine`; on a GPU as one CUDA graph."""
    if engine == "onnx":
        return make_onnx_predict_fn(policy, torch.get_num_threads())
    if not supports_folding(policy.config):
        return lambda obs, generator: policy.predict_action(obs, generator)["action"]
    denoise_fn = make_torch_denoise_fn(policy.denoiser)
    encode_obs = policy.encode_obs
    if engine == "compile":
        denoise_fn, encode_obs = compile_function(denoise_fn), compile_function(encode_obs)
    folded = FoldedDenoiser(policy, denoise_fn)

    def predict(inputs: Mapping[str, Tensor]) -> Tensor:
        return policy.predict_from_features(encode_obs(inputs), inputs[NOISE], folded.condition_on)["action"]

    run = GraphedFunction(predict) if policy.device.type == "cuda" else predict

    def predict_action(obs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        batch_size = len(next(iter(obs.values())))
        return run({**obs, NOISE: policy.sample_noise(batch_size, generator).to(policy.device)})

    return predict_action
