"""A policy as ONNX graphs.

encoder    observations -> features                                    exported by torch
denoiser   noisy trajectory, diffusion step, features -> prediction    exported by torch
policy     observations, noise -> actions                              both, with the chain around as a Loop

The chain is that of core/diffusion.py: its numbers per step are a table in the graph. All noise comes in as an input,
so that whoever calls decides about randomness.

Shapes: B batch, To observation steps, T trajectory, Ta action steps, Da action, D width of the trajectory, n steps.
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
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ddp_cli.core.policy import DiffusionPolicy

DEFAULT_OPSET = 18
NUMBERS = ("x_from", "out_from", "keep", "direct", "clean", "before", "noise")
"""Of a step of the chain, in the order of the table."""


class Encoder(nn.Module):
    """`encode_obs` with one argument per key."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        super().__init__()
        self.policy, self.keys = policy, obs_keys(policy)

    def forward(self, *obs: Tensor) -> Tensor:
        return self.policy.encode_obs(dict(zip(self.keys, obs, strict=True)))


def obs_keys(policy: DiffusionPolicy) -> list[str]:
    """Inputs of the encoder, in order."""
    return [*policy.config.image_keys, *policy.config.low_dim]


def trajectory_width(policy: DiffusionPolicy) -> int:
    """D: with inpainting the features are part of the trajectory."""
    return policy.config.action_dim + (0 if policy.config.obs_as_cond else policy.feature_dim)


def denoiser_names(policy: DiffusionPolicy) -> list[str]:
    """Inputs of the denoiser, in order."""
    return ["trajectory", "timesteps", "features"][: 3 if policy.config.obs_as_cond else 2]


def noise_draws(policy: DiffusionPolicy) -> int:
    """How many arrays of noise (B, T, D) the chain takes: its beginning, and one per step that adds noise."""
    return 1 + sum(step.noise > 0 for step in policy.steps)


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


class _Nodes:
    """Nodes and constants of a graph, named as they come."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = prefix

    def __call__(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        made = name or f"{self._prefix}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [made], **attributes))
        return made

    def constant(self, value: Any, kind: type) -> str:
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def embed(self, model: onnx.ModelProto, prefix: str, inputs: dict[str, str], output: str) -> None:
        """The nodes of `model`, whose inputs are called `inputs` here, and its one output `output`."""
        renamed = {**inputs, model.graph.output[0].name: output}

        def name(old: str) -> str:
            return renamed.get(old, prefix + old) if old else ""

        for tensor in model.graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = name(tensor.name)
            self.constants.append(copy)
        for node in model.graph.node:
            own = onnx.NodeProto()
            own.CopyFrom(node)
            own.name = ""
            own.input[:], own.output[:] = [name(x) for x in node.input], [name(x) for x in node.output]
            self.nodes.append(own)


def compose(policy: DiffusionPolicy, encoder: onnx.ModelProto, denoiser: onnx.ModelProto) -> onnx.ModelProto:
    """The graph from observations and `noise` (draws, B, T, D) to `action` (B, Ta, Da)."""
    config, keys, steps = policy.config, obs_keys(policy), policy.steps
    t, width = config.trajectory_steps, trajectory_width(policy)
    main, inside = _Nodes("main/"), _Nodes("step/")
    main.embed(encoder, "encoder/", {key: key for key in keys}, "features")
    known = None if config.obs_as_cond else _known(main, policy)
    first = main("Gather", "noise", main.constant(0, np.int64), axis=0)
    _step(inside, main, policy, denoiser, known)
    kind = TensorProto.FLOAT
    shape: list[str | int | None] = ["batch", t, width]
    values = [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", 9, [])]
    values += [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "clean_before")]
    results = [helper.make_tensor_value_info("going", 9, [])]
    results += [helper.make_tensor_value_info(name, kind, shape) for name in ("x_next", "clean")]
    body = helper.make_graph(inside.nodes, "step", values, results, [])
    loop = [main.constant(len(steps), np.int64), main.constant(True, np.bool_), first, first]
    main.nodes.append(helper.make_node("Loop", loop, ["x_end", "clean_end"], body=body))
    _finish(main, policy, "x_end" if known is None else main("Where", *known, "x_end"))
    inputs = list(encoder.graph.input)
    noise = helper.make_tensor_value_info("noise", kind, [noise_draws(policy), "batch", t, width])
    action = helper.make_tensor_value_info("action", kind, ["batch", config.n_action_steps, config.action_dim])
    graph = helper.make_graph(main.nodes, "policy", [*inputs, noise], [action], [*main.constants, *inside.constants])
    opsets = {o.domain: max(o.version, *(x.version for x in encoder.opset_import if x.domain == o.domain), 0)
              for o in denoiser.opset_import}  # fmt: skip
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=denoiser.ir_version)


def _step(g: _Nodes, main: _Nodes, policy: DiffusionPolicy, denoiser: onnx.ModelProto, known: Any) -> None:
    """One step of the chain: from `x` to `x_next`; `clean` is what it took for the clean trajectory."""
    steps = policy.steps
    g("Identity", "go", name="going")
    x = "x" if known is None else g("Where", *known, "x")
    batch = g("Slice", g("Shape", x), *(main.constant([i], np.int64) for i in (0, 1)))
    timestep = g("Gather", main.constant([step.timestep for step in steps], np.int64), "i", axis=0)
    inputs = {"trajectory": x, "timesteps": g("Expand", timestep, batch), "features": "features"}
    g.embed(denoiser, "denoiser/", {name: inputs[name] for name in denoiser_names(policy)}, "out")
    table = np.array([[getattr(step, number) for number in NUMBERS] for step in steps])
    row = g("Gather", main.constant(table, np.float32), "i", axis=0)
    number = {name: g("Gather", row, main.constant(j, np.int64), axis=0) for j, name in enumerate(NUMBERS)}
    clean = g("Add", g("Mul", x, number["x_from"]), g("Mul", "out", number["out_from"]))
    limits = (main.constant(-1.0, np.float32), main.constant(1.0, np.float32))
    clean = g("Clip", clean, *limits, name="clean") if steps[0].clip else g("Identity", clean, name="clean")
    following = g("Mul", clean, number["clean"])
    parts = {"keep": x, "direct": "out", "before": "clean_before"}
    for name, value in parts.items():
        if table[:, NUMBERS.index(name)].any():
            following = g("Add", following, g("Mul", value, number[name]))
    if noise_draws(policy) > 1:  # without noise the number is 0, and any draw will do
        draws = np.where(table[:, -1] > 0, np.cumsum(table[:, -1] > 0), 0)
        draw = g("Gather", main.constant(draws, np.int64), "i", axis=0)
        following = g("Add", following, g("Mul", g("Gather", "noise", draw, axis=0), number["noise"]))
    g("Identity", following, name="x_next")


def _known(g: _Nodes, policy: DiffusionPolicy) -> tuple[str, str]:
    """Inpainting: mask and values of what is known of a trajectory."""
    config = policy.config
    mask = np.zeros((1, config.trajectory_steps, trajectory_width(policy)), np.bool_)
    mask[:, : config.n_obs_steps, config.action_dim :] = True
    later = config.trajectory_steps - config.n_obs_steps
    pads = g.constant([0, 0, config.action_dim, 0, later, 0], np.int64)
    return g.constant(mask, np.bool_), g("Pad", "features", pads)


def _finish(g: _Nodes, policy: DiffusionPolicy, x: str) -> None:
    """The actions to execute of the trajectory `x`, as they were recorded."""
    config = policy.config
    first = 0 if config.pred_action_steps_only else config.n_obs_steps - 1
    begin, end, axes = ([first, 0], [first + config.n_action_steps, config.action_dim], [1, 2])
    x = g("Slice", x, *(g.constant(bound, np.int64) for bound in (begin, end, axes)))
    offset, scale = (policy.normalizer.get_buffer(f"action_{part}").numpy() for part in ("offset", "scale"))
    g("Div", g("Sub", x, g.constant(offset, np.float32)), g.constant(scale, np.float32), name="action")


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
