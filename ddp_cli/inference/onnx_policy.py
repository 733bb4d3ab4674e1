"""A whole policy as an ONNX graph: observations and noise in, actions out, the denoising steps in a Loop.

The denoising steps are those of core/diffusion.py; their coefficients are a table in the graph. All noise is an input,
so the caller controls the randomness. Checkpoints on a CPU run by this graph, and `ddp export` writes the same one: the
policy that was evaluated is, bit for bit, the one that is deployed. With `prefix_steps` N, the actions start with the
first `prefix_length` (B,) actions of `prefix` (B, N, Da), in raw units; without, the graph has no such inputs.

Shapes: B batch, To n_obs_steps, T trajectory steps, Ta n_action_steps, Da action, Do features, D trajectory width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.prefix import prefix_inputs
from ddp_cli.inference.folded_denoiser import FoldedDenoiser
from ddp_cli.inference.onnx_denoiser import add_denoiser, add_fold, add_marks
from ddp_cli.inference.onnx_encoder import add_encoder
from ddp_cli.inference.onnx_graph import GraphBuilder, ValueInfo, carry_outer_values, tensor_info
from ddp_cli.policy_config import PREFIX, PREFIX_LENGTH

DEFAULT_OPSET = 18
STEP_COEFFICIENTS = ("clean_from_x", "clean_from_out", "x", "out", "clean", "prev_clean", "noise")
"""Columns of the table of denoising steps: fields of core/diffusion.py's `Step`."""

STEP_INDEX = "loop/i"
"""Index of the denoising step in the body of the Loop. The `/` keeps names apart from observations, which have none."""

DenoiserBuilder = Callable[[GraphBuilder, str], str]
"""Adds the denoiser to the body of the Loop: (graph, name of the trajectory) -> name of the output."""


def obs_keys(policy: DiffusionPolicy) -> list[str]:
    """Observations that the encoder takes, in order."""
    return [*policy.config.image_keys, *policy.config.low_dim]


@torch.no_grad()
def build_policy_graph(policy: DiffusionPolicy, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """The graph of a policy whose denoiser can be folded (`supports_folding`)."""
    main, denoiser = GraphBuilder("main/"), policy.denoiser
    features = add_encoder(main, policy)
    given = add_given_steps(main, policy)
    marks = add_marks(main, denoiser, given)
    obs_memory = add_fold(main, denoiser, features)
    time = FoldedDenoiser(policy).timestep_memory
    time_memory = [main.constant(x) for x in (time.keys, time.offsets, time.values)]
    token_axes = (-1, -1, -2)
    # The memory of step i is that of its timestep, expanded to the batch, and that of the observations.
    one, three_ones = main.int64(1), main.int64(1, 1, 1)
    batch = main("Slice", main("Shape", "noise"), main.int64(1), main.int64(2))
    expanded_shape = main("Concat", one, batch, three_ones, axis=0)

    def build_denoiser(g: GraphBuilder, x: str) -> str:
        step = g("Unsqueeze", STEP_INDEX, g.int64(0))
        memory = [
            g("Concat", g("Expand", g("Gather", all_steps, step, axis=1), expanded_shape), obs, axis=axis)
            for all_steps, obs, axis in zip(time_memory, obs_memory, token_axes, strict=True)
        ]
        return add_denoiser(g, denoiser, policy.config.trajectory_steps, x, memory, marks)

    return compose_policy_graph(policy, main, features, build_denoiser, opset, given)


def compose_policy_graph(
    policy: DiffusionPolicy,
    main: GraphBuilder,
    features: str,
    build_denoiser: DenoiserBuilder,
    opset: int,
    given: str | None = None,
) -> onnx.ModelProto:
    """The graph from observations and `noise` (n_noise_tensors, B, T, D) to `action` (B, Ta, Da).

    `main` already computes `features` (B, To, Do) and, with `prefix_steps`, the steps `given` (B, T).
    """
    config = policy.config
    inpainting = _inpainting(main, policy, features, given)
    x_init = main("Gather", "noise", main.constant(0, int), axis=0)
    body = _loop_body(policy, build_denoiser, inpainting)
    loop_inputs = [main.constant(len(policy.steps), int), main.constant(True, bool), x_init, x_init]
    outer = carry_outer_values(body, {tensor.name for tensor in main.constants})
    loop_outputs = ["loop/x_last", "loop/clean_last", *(f"loop/{name}_last" for name in outer)]
    main.nodes.append(helper.make_node("Loop", [*loop_inputs, *outer], loop_outputs, body=body))
    _add_action(main, policy, "loop/x_last" if inpainting is None else main("Where", *inpainting, "loop/x_last"))
    noise = tensor_info("noise", [policy.n_noise_tensors, "batch", *policy.trajectory_shape])
    action = tensor_info("action", ["batch", config.n_action_steps, config.action_dim])
    inputs = [*_obs_inputs(policy), noise, *_prefix_inputs(policy)]
    graph = helper.make_graph(main.nodes, "policy", inputs, [action], main.constants)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def _obs_inputs(policy: DiffusionPolicy) -> list[ValueInfo]:
    config = policy.config
    images = [
        tensor_info(key, ["batch", config.n_obs_steps, camera.channels, camera.height, camera.width], TensorProto.UINT8)
        for key, camera in config.cameras.items()
    ]
    return images + [tensor_info(k, ["batch", config.n_obs_steps, width]) for k, width in config.low_dim.items()]


def _prefix_inputs(policy: DiffusionPolicy) -> list[ValueInfo]:
    config = policy.config
    if not config.prefix_steps:
        return []
    prefix = tensor_info(PREFIX, ["batch", config.prefix_steps, config.action_dim])
    return [prefix, tensor_info(PREFIX_LENGTH, ["batch"], TensorProto.INT64)]


def _loop_body(
    policy: DiffusionPolicy, build_denoiser: DenoiserBuilder, inpainting: tuple[str, str] | None
) -> onnx.GraphProto:
    """One denoising step: (i, condition, x, prev_clean) -> (condition, x_next, clean)."""
    g = GraphBuilder("step/")
    g("Identity", "loop/condition", name="loop/next_condition")
    _add_step(g, policy, build_denoiser, inpainting)
    shape: list[str | int | None] = ["batch", *policy.trajectory_shape]
    inputs = [
        tensor_info(STEP_INDEX, [], TensorProto.INT64),
        tensor_info("loop/condition", [], TensorProto.BOOL),
        tensor_info("loop/x", shape),
        tensor_info("loop/prev_clean", shape),
    ]
    outputs = [
        tensor_info("loop/next_condition", [], TensorProto.BOOL),
        tensor_info("loop/x_next", shape),
        tensor_info("loop/clean", shape),
    ]
    return helper.make_graph(g.nodes, "step", inputs, outputs, g.constants)


def _add_step(
    g: GraphBuilder, policy: DiffusionPolicy, build_denoiser: DenoiserBuilder, inpainting: tuple[str, str] | None
) -> None:
    """Computes `x_next` and `clean` as `core.diffusion.sample` does."""
    steps = policy.steps
    x = "loop/x" if inpainting is None else g("Where", *inpainting, "loop/x")
    out = build_denoiser(g, x)
    table = np.array([[getattr(step, name) for name in STEP_COEFFICIENTS] for step in steps])
    row = g("Gather", g.constant(table), STEP_INDEX, axis=0)
    coefficients = {name: g("Gather", row, g.constant(j, int), axis=0) for j, name in enumerate(STEP_COEFFICIENTS)}
    clean = g("Add", g("Mul", x, coefficients["clean_from_x"]), g("Mul", out, coefficients["clean_from_out"]))
    bounds = (g.constant(-1.0), g.constant(1.0))
    clean = g("Clip", clean, *bounds, name="loop/clean") if steps[0].clip else g("Identity", clean, name="loop/clean")
    x_next = g("Mul", clean, coefficients["clean"])
    for name, tensor in {"x": x, "out": out, "prev_clean": "loop/prev_clean"}.items():
        if table[:, STEP_COEFFICIENTS.index(name)].any():
            x_next = g("Add", x_next, g("Mul", tensor, coefficients[name]))
    if policy.n_noise_tensors > 1:  # steps without noise have coefficient 0 and may use any tensor
        has_noise = table[:, STEP_COEFFICIENTS.index("noise")] > 0
        noise_index = g("Gather", g.constant(np.where(has_noise, np.cumsum(has_noise), 0), int), STEP_INDEX, axis=0)
        noise = g("Gather", "noise", noise_index, axis=0)
        x_next = g("Add", x_next, g("Mul", noise, coefficients["noise"]))
    g("Identity", x_next, name="loop/x_next")


def add_given_steps(g: GraphBuilder, policy: DiffusionPolicy) -> str | None:
    """`core.prefix.given_steps` (B, T) of the input `prefix_length`; None for policies without `prefix_steps`."""
    config = policy.config
    if not config.prefix_steps:
        return None
    steps = np.arange(config.trajectory_steps) - config.action_start
    before = g("Less", g.int64(*steps), g("Unsqueeze", PREFIX_LENGTH, g.int64(1)))
    return g("And", g.constant(steps >= 0, bool), before)


def _inpainting(g: GraphBuilder, policy: DiffusionPolicy, features: str, given: str | None) -> tuple[str, str] | None:
    """Mask and values of the given entries of the trajectory; None if there are none."""
    config = policy.config
    if given is not None:
        scale, offset = (g.constant(policy.normalizer.get_buffer(f"action_{part}")) for part in ("scale", "offset"))
        prefix = g("Add", g("Mul", PREFIX, scale), offset)
        after = config.trajectory_steps - config.action_start - config.prefix_steps
        values = g("Pad", prefix, g.int64(0, config.action_start, 0, 0, after, 0))
        return g("Unsqueeze", given, g.int64(2)), values
    if config.obs_as_cond:
        return None
    mask = g.constant(policy.inpainting_mask())
    values = g("Pad", features, g.int64(0, 0, config.action_dim, 0, config.trajectory_steps - config.n_obs_steps, 0))
    return mask, values


def _add_action(g: GraphBuilder, policy: DiffusionPolicy, x: str) -> None:
    """Computes `action`, the unnormalized actions to execute, from the trajectory `x`."""
    config = policy.config
    start, end = config.action_start, config.action_start + config.n_action_steps
    x = g("Slice", x, g.int64(start, 0), g.int64(end, config.action_dim), g.int64(1, 2))
    offset, scale = (g.constant(policy.normalizer.get_buffer(f"action_{part}")) for part in ("offset", "scale"))
    g("Div", g("Sub", x, offset), scale, name="action")


def make_onnx_predict_fn(policy: DiffusionPolicy, threads: int) -> Callable[..., Tensor]:
    """Predicts action chunks (engine.py's `PredictFn`) on a CPU, by ONNX Runtime with `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    graph = build_policy_graph(policy).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    n_steps = policy.config.n_obs_steps

    def predict(obs: Mapping[str, Tensor], generator: torch.Generator, prefix: Tensor | None = None) -> Tensor:
        inputs = {key: obs[key][:, :n_steps].contiguous() for key in obs_keys(policy)}
        batch_size = len(next(iter(inputs.values())))
        inputs |= {"noise": policy.sample_noise(batch_size, generator)}
        inputs |= prefix_inputs(policy.config, prefix, batch_size)
        return torch.from_numpy(session.run(["action"], {key: x.numpy() for key, x in inputs.items()})[0])

    return predict
