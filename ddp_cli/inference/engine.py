"""What computes the action chunks of a policy: torch, torch.compile or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, get_args

import torch
from torch import Tensor

from ddp_cli.choices import Engine
from ddp_cli.core.cuda_graph import GraphedFunction
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.prefix import prefix_inputs
from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.inference.compiled_policy import compile_function
from ddp_cli.inference.folded_denoiser import FoldedDenoiser, make_torch_denoise_fn, supports_folding
from ddp_cli.inference.onnx_policy import make_onnx_predict_fn
from ddp_cli.policy_config import PREFIX, PREFIX_LENGTH, PolicyConfig

NOISE = "noise"  # among the inputs of a prediction, beside the observations


class PredictFn(Protocol):
    """Predicts action chunks."""

    def __call__(self, obs: Mapping[str, Tensor], generator: torch.Generator, prefix: Tensor | None = None) -> Tensor:
        """Actions (B, Ta, Da) from observations {key: (B, To, ...)}; `generator`, on the CPU, samples the noise.

        The actions start with `prefix` (B, P, Da), in raw units; ConfigError if the policy takes none, or fewer.
        """


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
        return _unfolded_predict_fn(policy)
    denoise_fn = make_torch_denoise_fn(policy.denoiser)
    encode_obs = policy.encode_obs
    if engine == "compile":
        denoise_fn, encode_obs = compile_function(denoise_fn), compile_function(encode_obs)
    folded = FoldedDenoiser(policy, denoise_fn)
    prefix_keys = (PREFIX, PREFIX_LENGTH) if policy.config.prefix_steps else ()

    def predict(inputs: Mapping[str, Tensor]) -> Tensor:
        prefix, length = (inputs.get(key) for key in prefix_keys) if prefix_keys else (None, None)
        features = encode_obs({key: x for key, x in inputs.items() if key not in (NOISE, *prefix_keys)})
        return policy.predict_from_features(features, inputs[NOISE], folded.condition_on, prefix, length)["action"]

    run = GraphedFunction(predict, policy.device) if policy.device.type == "cuda" else predict

    def predict_action(obs: Mapping[str, Tensor], generator: torch.Generator, prefix: Tensor | None = None) -> Tensor:
        batch_size = len(next(iter(obs.values())))
        inputs = {NOISE: policy.sample_noise(batch_size, generator), **prefix_inputs(policy.config, prefix, batch_size)}
        return run({**obs, **{key: x.to(policy.device) for key, x in inputs.items()}})

    return predict_action


def _unfolded_predict_fn(policy: DiffusionPolicy) -> PredictFn:
    def predict_action(obs: Mapping[str, Tensor], generator: torch.Generator, prefix: Tensor | None = None) -> Tensor:
        inputs = prefix_inputs(policy.config, prefix, len(next(iter(obs.values()))))
        inputs = {key: x.to(policy.device) for key, x in inputs.items()}
        return policy.predict_action(obs, generator, **inputs)["action"]

    return predict_action
