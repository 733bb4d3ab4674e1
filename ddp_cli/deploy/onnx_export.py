"""The parts of a policy as ONNX graphs, traced by torch, in any precision.

encoder    observations -> features
denoiser   noisy trajectory, diffusion step, features -> prediction

Shapes: B batch, To observation steps.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.inference.onnx_graph import GraphBuilder
from ddp_cli.inference.onnx_policy import compose, obs_keys, trajectory_width


class Encoder(nn.Module):
    """`encode_obs` with one argument per key."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        super().__init__()
        self.policy, self.keys = policy, obs_keys(policy)

    def forward(self, *obs: Tensor) -> Tensor:
        return self.policy.encode_obs(dict(zip(self.keys, obs, strict=True)))


def denoiser_names(policy: DiffusionPolicy) -> list[str]:
    """Inputs of the denoiser, in order."""
    return ["trajectory", "timesteps", "features"][: 3 if policy.config.obs_as_cond else 2]


def example(policy: DiffusionPolicy, obs: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs of encoder and denoiser for observations {key: (B, To, ...)}."""
    config = policy.config
    inputs = tuple(obs[key].contiguous() for key in obs_keys(policy))
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(len(inputs[0]), config.trajectory_steps, trajectory_width(policy), generator=generator)
    steps = torch.randint(0, config.num_train_timesteps, (len(noisy),), generator=generator)
    with torch.no_grad():
        features = policy.encode_obs(obs)
    return inputs, (noisy, steps, features)[: len(denoiser_names(policy))]


def trace(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], output: str, opset: int, path: Path) -> None:
    """Writes `module` as the graph `path`, for any batch."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    dynamic: Any = tuple({0: batch} for _ in inputs)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                module.eval(), inputs, path, input_names=names, output_names=[output], dynamo=True,
                dynamic_shapes=(dynamic,) if isinstance(module, Encoder) else dynamic,
                opset_version=opset, external_data=False, verbose=False,
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)


def joined(policy: DiffusionPolicy, encoder: onnx.ModelProto, denoiser: onnx.ModelProto) -> onnx.ModelProto:
    """The whole policy of the graphs of its parts."""
    main = GraphBuilder("main/")
    main.embed(encoder, "encoder/", {key: key for key in obs_keys(policy)}, "features")

    def predict(g: GraphBuilder, x: str) -> str:
        batch = g("Slice", g("Shape", x), g.whole(0), g.whole(1))
        timestep = g("Gather", g.whole(*(step.timestep for step in policy.steps)), "i", axis=0)
        inputs = {"trajectory": x, "timesteps": g("Expand", timestep, batch), "features": "features"}
        g.embed(denoiser, "denoiser/", {name: inputs[name] for name in denoiser_names(policy)}, "out")
        return "out"

    opset = max(x.version for model in (encoder, denoiser) for x in model.opset_import if not x.domain)
    made = compose(policy, main, "features", predict, opset)
    others = {x.domain: x.version for model in (encoder, denoiser) for x in model.opset_import if x.domain}
    made.opset_import.extend(helper.make_opsetid(*item) for item in others.items())
    return made


def half(path: Path) -> None:
    """Makes a graph compute in float16; inputs and outputs stay as they were."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = OnnxModel(convert_float_to_float16(onnx.load(path), keep_io_types=True))
    model.topological_sort()  # the casts of the inputs come last
    onnx.save(model.model, path)


def quantized(path: Path) -> None:
    """Makes the matrix products of a graph int8: weights per channel, activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(path, path, ["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


def difference(one: Any, other: Any) -> float:
    """Largest difference of two arrays; infinite if one is not finite."""
    found = float(np.abs(np.asarray(one) - np.asarray(other)).max())
    return found if math.isfinite(found) else math.inf
