"""A whole policy as an ONNX graph: observations and noise in, actions out, the chain as a Loop.

The chain is that of core/diffusion.py: its numbers per step are a table in the graph. All noise comes in as an input,
so that whoever calls decides about randomness. On a CPU a checkpoint is run by this graph, and `ddp export` writes the
same one: what was evaluated is, to the last bit, what is deployed.

Shapes: B batch, To observation steps, T trajectory, Ta action steps, Da action, D width of the trajectory, n steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.inference.folded_denoiser import FoldedDenoiser
from ddp_cli.inference.onnx_denoiser import denoise, fold
from ddp_cli.inference.onnx_encoder import encode
from ddp_cli.inference.onnx_graph import GraphBuilder, ValueInfo, value
from ddp_cli.tasks import IMAGE_SIZE

DEFAULT_OPSET = 18
NUMBERS = ("x_from", "out_from", "keep", "direct", "clean", "before", "noise")
"""Of a step of the chain, in the order of the table."""


def obs_keys(policy: DiffusionPolicy) -> list[str]:
    """Inputs of the encoder, in order."""
    return [*policy.config.image_keys, *policy.config.low_dim]


def trajectory_width(policy: DiffusionPolicy) -> int:
    """D: with inpainting the features are part of the trajectory."""
    return policy.config.action_dim + (0 if policy.config.obs_as_cond else policy.feature_dim)


def n_noise_tensors(policy: DiffusionPolicy) -> int:
    """How many arrays of noise (B, T, D) the chain takes: its beginning, and one per step that adds noise."""
    return 1 + sum(step.noise > 0 for step in policy.steps)


def draw_noise(draws: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(draws, *shape), as `predict_action` draws it: one array after the other."""
    return torch.stack([torch.randn(shape, generator=generator) for _ in range(draws)])


@torch.no_grad()
def build(policy: DiffusionPolicy, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """The graph of a policy whose denoiser can be folded (`supports_folding`)."""
    main, denoiser = GraphBuilder("main/"), policy.denoiser
    features = encode(main, policy)
    seen = fold(main, denoiser, features)
    time = FoldedDenoiser(policy).time
    # In every step the memory is that of the diffusion step, for all of the batch, and what was seen.
    places = tuple(zip(map(main.constant, (time.keys, time.offsets, time.values)), seen, (-1, -1, -2), strict=True))
    one, three = main.whole(1), main.whole(1, 1, 1)
    batch = main("Slice", main("Shape", "noise"), main.whole(1), main.whole(2))
    broad = main("Concat", one, batch, three, axis=0)

    def predict(g: GraphBuilder, x: str) -> str:
        at = g("Unsqueeze", "i", g.whole(0))
        memory = [
            g("Concat", g("Expand", g("Gather", all_steps, at, axis=1), broad), own, axis=axis)
            for all_steps, own, axis in places
        ]
        return denoise(g, denoiser, policy.config.trajectory_steps, x, memory)

    return compose(policy, main, features, predict, opset)


def compose(
    policy: DiffusionPolicy, main: GraphBuilder, features: str, predict: Callable[[GraphBuilder, str], str], opset: int
) -> onnx.ModelProto:
    """The graph from observations and `noise` (draws, B, T, D) to `action` (B, Ta, Da).

    `main` computes `features`; `predict` adds the denoiser's nodes for the trajectory `x` in step `i` of the chain.
    """
    config = policy.config
    t, width = config.trajectory_steps, trajectory_width(policy)
    known = None if config.obs_as_cond else _known(main, policy, features)
    first = main("Gather", "noise", main.constant(0, int), axis=0)
    inside = GraphBuilder("step/")
    _step(inside, policy, predict, known)
    flags = [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL)]
    shape: list[str | int | None] = ["batch", t, width]
    given = [*flags, value("x", shape), value("clean_before", shape)]
    results = [value("going", [], TensorProto.BOOL), value("x_next", shape), value("clean", shape)]
    body = helper.make_graph(inside.nodes, "step", given, results, inside.constants)
    loop = [main.constant(len(policy.steps), int), main.constant(True, bool), first, first]
    main.nodes.append(helper.make_node("Loop", loop, ["x_end", "clean_end"], body=body))
    _finish(main, policy, "x_end" if known is None else main("Where", *known, "x_end"))
    noise = value("noise", [n_noise_tensors(policy), "batch", t, width])
    action = value("action", ["batch", config.n_action_steps, config.action_dim])
    graph = helper.make_graph(main.nodes, "policy", [*_inputs(policy), noise], [action], main.constants)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def _inputs(policy: DiffusionPolicy) -> list[ValueInfo]:
    config, shape = policy.config, (3, IMAGE_SIZE, IMAGE_SIZE)
    pictures = [value(k, ["batch", config.n_obs_steps, *shape], TensorProto.UINT8) for k in config.image_keys]
    return pictures + [value(k, ["batch", config.n_obs_steps, width]) for k, width in config.low_dim.items()]


def _step(
    g: GraphBuilder, policy: DiffusionPolicy, predict: Callable[[GraphBuilder, str], str], known: tuple[str, str] | None
) -> None:
    """One step of the chain: from `x` to `x_next`; `clean` is what it took for the clean trajectory."""
    steps = policy.steps
    g("Identity", "go", name="going")
    x = "x" if known is None else g("Where", *known, "x")
    out = predict(g, x)
    table = np.array([[getattr(step, number) for number in NUMBERS] for step in steps])
    row = g("Gather", g.constant(table), "i", axis=0)
    number = {name: g("Gather", row, g.constant(j, int), axis=0) for j, name in enumerate(NUMBERS)}
    clean = g("Add", g("Mul", x, number["x_from"]), g("Mul", out, number["out_from"]))
    limits = (g.constant(-1.0), g.constant(1.0))
    clean = g("Clip", clean, *limits, name="clean") if steps[0].clip else g("Identity", clean, name="clean")
    following = g("Mul", clean, number["clean"])
    parts = {"keep": x, "direct": out, "before": "clean_before"}
    for name, part in parts.items():
        if table[:, NUMBERS.index(name)].any():
            following = g("Add", following, g("Mul", part, number[name]))
    if n_noise_tensors(policy) > 1:  # without noise the number is 0, and any draw will do
        draws = np.where(table[:, -1] > 0, np.cumsum(table[:, -1] > 0), 0)
        draw = g("Gather", g.constant(draws, int), "i", axis=0)
        following = g("Add", following, g("Mul", g("Gather", "noise", draw, axis=0), number["noise"]))
    g("Identity", following, name="x_next")


def _known(g: GraphBuilder, policy: DiffusionPolicy, features: str) -> tuple[str, str]:
    """Inpainting: mask and values of what is known of a trajectory."""
    config = policy.config
    mask = np.zeros((1, config.trajectory_steps, trajectory_width(policy)), np.bool_)
    mask[:, : config.n_obs_steps, config.action_dim :] = True
    later = config.trajectory_steps - config.n_obs_steps
    return g.constant(mask, bool), g("Pad", features, g.whole(0, 0, config.action_dim, 0, later, 0))


def _finish(g: GraphBuilder, policy: DiffusionPolicy, x: str) -> None:
    """The actions to execute of the trajectory `x`, as they were recorded."""
    config = policy.config
    first = 0 if config.pred_action_steps_only else config.n_obs_steps - 1
    end = g.whole(first + config.n_action_steps, config.action_dim)
    x = g("Slice", x, g.whole(first, 0), end, g.whole(1, 2))
    offset, scale = (g.constant(policy.normalizer.get_buffer(f"action_{part}")) for part in ("offset", "scale"))
    g("Div", g("Sub", x, offset), scale, name="action")


def onnx_predictor(policy: DiffusionPolicy, threads: int) -> Callable[[Mapping[str, Tensor], torch.Generator], Tensor]:
    """`predict_action(obs, generator)["action"]` of a policy on a CPU, by ONNX Runtime with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    graph = build(policy).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    steps, draws, width = policy.config.n_obs_steps, n_noise_tensors(policy), trajectory_width(policy)

    def predict(obs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        feeds = {key: obs[key][:, :steps].contiguous().numpy() for key in obs_keys(policy)}
        shape = (len(next(iter(feeds.values()))), policy.config.trajectory_steps, width)
        noise = draw_noise(draws, shape, generator).numpy()
        return torch.from_numpy(session.run(["action"], feeds | {"noise": noise})[0])

    return predict
