"""Exports the parts of a policy as ONNX graphs, traced by torch, in several precisions.

encoder    observations -> features
denoiser   noisy trajectory, timesteps, features -> prediction; with `prefix_steps` also the steps that are given

Shapes: B batch, To n_obs_steps, T trajectory steps, Do features, D trajectory width.
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
from ddp_cli.core.prefix import given_steps
from ddp_cli.inference.onnx_graph import GraphBuilder
from ddp_cli.inference.onnx_policy import STEP_INDEX, add_given_steps, compose_policy_graph, obs_keys

MAX_BATCH_SIZE = 4096  # that exported graphs and programs accept


class Encoder(nn.Module):
    """`encode_obs` with one argument per observation key."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        super().__init__()
        self.policy, self.keys = policy, obs_keys(policy)

    def forward(self, *obs: Tensor) -> Tensor:
        return self.policy.encode_obs(dict(zip(self.keys, obs, strict=True)))


def denoiser_input_names(policy: DiffusionPolicy) -> list[str]:
    """Inputs of the denoiser, in order; with inpainting the features are part of the trajectory."""
    names = ["trajectory", "timesteps", "features"][: 3 if policy.config.obs_as_cond else 2]
    return [*names, "given"] if policy.config.prefix_steps else names


def make_example_inputs(
    policy: DiffusionPolicy, obs: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs of the encoder and of the denoiser for observations {key: (B, To, ...)}."""
    encoder_inputs = tuple(obs[key].contiguous() for key in obs_keys(policy))
    batch_size = len(encoder_inputs[0])
    generator = torch.Generator().manual_seed(0)
    trajectory = torch.randn(batch_size, *policy.trajectory_shape, generator=generator)
    timesteps = torch.randint(0, policy.config.num_train_timesteps, (batch_size,), generator=generator)
    with torch.no_grad():
        features = policy.encode_obs(obs)
    lengths = torch.arange(batch_size) % (policy.config.prefix_steps + 1)
    inputs = {"trajectory": trajectory, "timesteps": timesteps, "features": features}
    inputs |= {"given": given_steps(policy.config, lengths)}
    return encoder_inputs, tuple(inputs[name] for name in denoiser_input_names(policy))


def dynamic_batch(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """`dynamic_shapes` for torch.export: any batch size."""
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH_SIZE)
    shapes = tuple({0: batch} for _ in inputs)
    return (shapes,) if isinstance(module, Encoder) else shapes  # Encoder.forward has variadic arguments


def export_graph(
    module: nn.Module, inputs: tuple[Tensor, ...], input_names: list[str], output_name: str, opset: int, path: Path
) -> None:
    """Trace `module` and write the ONNX graph, for any batch size, to `path`."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                module.eval(), inputs, path, input_names=input_names, output_names=[output_name], dynamo=True,
                dynamic_shapes=dynamic_batch(module, inputs), opset_version=opset, external_data=False, verbose=False,
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
    model = onnx.load(path)
    strip_metadata(model)
    onnx.save(model, path)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove metadata and doc strings: torch's exporter stores stack traces there, with paths of this machine."""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    _strip_graph(model.graph)
    for function in model.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")
        _strip_nodes(function.node)


def _strip_graph(graph: onnx.GraphProto) -> None:
    for proto in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        proto.ClearField("doc_string")
        proto.ClearField("metadata_props")
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _strip_graph(subgraph)


def join_graphs(policy: DiffusionPolicy, encoder: onnx.ModelProto, denoiser: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of the whole policy, from the graphs of its parts."""
    main = GraphBuilder("main/")
    main.inline_model(encoder, "encoder/", {key: key for key in obs_keys(policy)}, "main/features")
    given = add_given_steps(main, policy)

    def build_denoiser(g: GraphBuilder, x: str) -> str:
        batch = g("Slice", g("Shape", x), g.int64(0), g.int64(1))
        timestep = g("Gather", g.int64(*(step.timestep for step in policy.steps)), STEP_INDEX, axis=0)
        inputs = {"trajectory": x, "timesteps": g("Expand", timestep, batch), "features": "main/features"}
        inputs |= {"given": given} if given else {}
        g.inline_model(denoiser, "denoiser/", {name: inputs[name] for name in denoiser_input_names(policy)}, "loop/out")
        return "loop/out"

    opset = max(x.version for model in (encoder, denoiser) for x in model.opset_import if not x.domain)
    model = compose_policy_graph(policy, main, "main/features", build_denoiser, opset, given)
    other_domains = {x.domain: x.version for part in (encoder, denoiser) for x in part.opset_import if x.domain}
    model.opset_import.extend(helper.make_opsetid(*item) for item in other_domains.items())
    return model


def convert_to_float16(path: Path) -> None:
    """Make the graph in `path` compute in float16; its inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = OnnxModel(convert_float_to_float16(onnx.load(path), keep_io_types=True))
    model.topological_sort()  # the conversion appends the casts of the inputs at the end
    onnx.save(model.model, path)


def quantize_to_int8(path: Path) -> None:
    """Quantize the matrix products of the graph in `path`: weights int8 per channel, activations dynamically."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(path, path, ["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


def max_difference(a: Any, b: Any) -> float:
    """Largest absolute difference of two arrays; infinite if one of them is not finite."""
    difference = float(np.abs(np.asarray(a) - np.asarray(b)).max())
    return difference if math.isfinite(difference) else math.inf
