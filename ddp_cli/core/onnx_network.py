"""The folded denoiser (core/chain.py) as an ONNX graph, run by ONNX Runtime: on a CPU the fastest engine.

The graph is written node by node, because it is needed when a policy is loaded: tracing takes seconds.
Shapes as in core/chain.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ddp_cli.core.chain import Memory, Network
from ddp_cli.core.denoiser import Denoiser, Layer

OPSET = 20  # the first with Gelu
NAMES = ("x", "keys", "offsets", "values")


class _Graph:
    """Nodes and constants, named as they come."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Tensor | list[int]) -> str:
        array = np.array(value, np.int64) if isinstance(value, list) else value.detach().cpu().contiguous().numpy()
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        return self("Add", self("MatMul", x, self.constant(weight.t())), self.constant(bias))

    def norm(self, x: str, norm: torch.nn.LayerNorm) -> str:
        weights = self.constant(norm.weight), self.constant(norm.bias)
        return self("LayerNormalization", x, *weights, axis=-1, epsilon=norm.eps)

    def part(self, x: str, i: int) -> str:
        return self("Gather", x, self.constant([i]), axis=0)


def build(denoiser: Denoiser, tokens: int) -> bytes:
    """The graph for trajectories of `tokens` steps: (x, keys, offsets, values) -> prediction."""
    layers: Any = denoiser.layers
    g, c, h = _Graph(), denoiser.n_emb, layers[0].self_attention.n_head
    hidden = [_hidden(mask) for mask in (denoiser.mask, denoiser.memory_mask)]
    x = g.linear("x", denoiser.input_emb.weight, denoiser.input_emb.bias)
    x = g("Add", x, g.constant(denoiser.pos_emb[:, :tokens]))
    for i, layer in enumerate(layers):
        x = g("Add", x, _self_attention(g, layer, x, tokens, hidden[0]))
        x = g("Add", x, _cross_attention(g, layer, x, i, tokens, hidden[1]))
        y = g("Gelu", g.linear(g.norm(x, layer.norm3), layer.linear1.weight, layer.linear1.bias))
        x = g("Add", x, g.linear(y, layer.linear2.weight, layer.linear2.bias))
    x = g("Identity", g.linear(g.norm(x, denoiser.ln_f), denoiser.head.weight, denoiser.head.bias))
    width, s = denoiser.input_emb.in_features, denoiser.cond_pos_emb.shape[1]
    n = len(layers)
    shapes: dict[str, list[int | str]] = {
        "x": ["B", tokens, width], "keys": [n, "B", c, h, s], "offsets": [n, "B", 1, h, s], "values": [n, "B", h, s, c],
    }  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in NAMES]
    output = helper.make_tensor_value_info(x, TensorProto.FLOAT, shapes["x"])
    graph = helper.make_graph(g.nodes, "denoiser", inputs, [output], g.constants)
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def _hidden(mask: Tensor | None) -> Tensor | None:
    """What is added to scores: 0 where `mask` lets look, minus infinity elsewhere."""
    return None if mask is None else torch.zeros(mask.shape).masked_fill(~mask.cpu(), -math.inf)


def _self_attention(g: _Graph, layer: Layer, x: str, tokens: int, hidden: Tensor | None) -> str:
    own, c = layer.self_attention, layer.norm1.normalized_shape[0]
    d = c // own.n_head
    weight = torch.cat([own.query.weight / math.sqrt(d), own.key_value.weight])
    bias = torch.cat([own.query.bias / math.sqrt(d), own.key_value.bias])
    qkv = g("Reshape", g.linear(g.norm(x, layer.norm1), weight, bias), g.constant([0, tokens, 3, own.n_head, d]))
    q, k, v = (g("Squeeze", g("Gather", qkv, g.constant([j]), axis=2), g.constant([2])) for j in range(3))
    q, v = (g("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, v))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 2, 3, 1]))  # (B, h, T, T)
    if hidden is not None:
        scores = g("Add", scores, g.constant(hidden))
    y = g("Transpose", g("MatMul", g("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return g.linear(g("Reshape", y, g.constant([0, tokens, c])), own.out.weight, own.out.bias)


def _cross_attention(g: _Graph, layer: Layer, x: str, i: int, tokens: int, hidden: Tensor | None) -> str:
    assert layer.norm2 is not None
    assert layer.cross_attention is not None
    h, c = layer.cross_attention.n_head, layer.norm2.normalized_shape[0]
    keys, offsets, values = (g("Squeeze", g.part(name, i), g.constant([0])) for name in NAMES[1:])
    keys, offsets = g("Reshape", keys, g.constant([0, c, -1])), g("Reshape", offsets, g.constant([0, 1, -1]))
    scores = g("Add", g("MatMul", g.norm(x, layer.norm2), keys), offsets)
    scores = g("Reshape", scores, g.constant([0, tokens, h, -1]))
    if hidden is not None:
        scores = g("Add", scores, g.constant(hidden[:, None]))
    weights = g("Reshape", g("Softmax", scores, axis=-1), g.constant([0, tokens, -1]))
    y = g("MatMul", weights, g("Reshape", values, g.constant([0, -1, c])))
    return g("Add", y, g.constant(layer.cross_attention.out.bias))


def onnx_network(denoiser: Denoiser, tokens: int, threads: int) -> Network:
    """The folded denoiser of a policy on a CPU, with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(build(denoiser, tokens), options, providers=["CPUExecutionProvider"])

    def network(x: Tensor, memory: Memory) -> Tensor:
        arrays = (t.contiguous().numpy() for t in (x, memory.keys, memory.offsets, memory.values))
        return torch.from_numpy(session.run(None, dict(zip(NAMES, arrays, strict=True)))[0])

    return network
