"""The folded denoiser (inference/folded_denoiser.py, same shapes) as nodes of ONNX graphs.

Built by hand because torch's exporter starts seconds later, see inference/onnx_graph.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddp_cli.core.denoiser import Denoiser, TransformerLayer
from ddp_cli.inference.onnx_graph import FLOAT, GraphBuilder


def add_fold(g: GraphBuilder, denoiser: Denoiser, features: str) -> tuple[str, str, str]:
    """`folded_denoiser.fold` of features (B, To, Do), once encoded: keys (L, B, C, h, To), offsets (L, B, 1, h, To),
    values (L, B, h, To, C).
    """
    assert denoiser.cond_emb is not None
    assert denoiser.encoder is not None
    assert denoiser.encoder.mlp is not None
    pos_emb = denoiser.cond_pos_emb[:, 1:]
    tokens = g("Add", g.linear_layer(features, denoiser.cond_emb), g.constant(pos_emb))
    linear1, _, linear2 = denoiser.encoder.mlp
    memory = g.linear_layer(g.mish(g.linear_layer(tokens, linear1)), linear2)
    folded: list[tuple[str, str, str]] = []
    layers: Any = denoiser.layers
    for layer in layers:
        attention, c = layer.cross_attention, denoiser.n_emb
        h, d = attention.n_head, c // attention.n_head
        kv = g("Reshape", g.linear_layer(memory, attention.key_value), g.int64(0, pos_emb.shape[1], 2, h, d))
        k, v = (g("Gather", kv, g.constant(i, int), axis=2) for i in (0, 1))  # (B, To, h, d)
        k = g("Mul", g("Transpose", k, perm=[0, 2, 3, 1]), g.constant(1 / math.sqrt(d)))  # (B, h, d, To)
        query = attention.query
        keys = g("MatMul", g.constant(query.weight.view(h, d, c).transpose(1, 2)), k)  # (B, h, C, To)
        offsets = g("MatMul", g.constant(query.bias.view(h, 1, d)), k)
        out = attention.out.weight.view(c, h, d).permute(1, 2, 0)
        values = g("MatMul", g("Transpose", v, perm=[0, 2, 1, 3]), g.constant(out))  # (B, h, To, C)
        keys, offsets = (g("Transpose", y, perm=[0, 2, 1, 3]) for y in (keys, offsets))
        folded.append((keys, offsets, values))
    keys, offsets, values = (
        g("Concat", *(g("Unsqueeze", y, g.int64(0)) for y in ys), axis=0) for ys in zip(*folded, strict=True)
    )
    return keys, offsets, values


def add_marks(g: GraphBuilder, denoiser: Denoiser, given: str | None) -> str | None:
    """`denoiser.mark_given` of the steps `given` (B, T)."""
    if given is None or denoiser.prefix_emb is None:
        return None
    return g("Mul", g("Cast", g("Unsqueeze", given, g.int64(2)), to=FLOAT), g.constant(denoiser.prefix_emb))


def add_denoiser(
    g: GraphBuilder, denoiser: Denoiser, tokens: int, x: str, memory: Sequence[str], marks: str | None = None
) -> str:
    """The denoiser's output (B, T, D) for a trajectory `x` (B, T, D) of `tokens` steps and its folded memory. `marks`
    (B, T, C) are those of `add_marks`.
    """
    layers: Any = denoiser.layers
    bias, memory_bias = (_attention_bias(mask) for mask in (denoiser.mask, denoiser.memory_mask))
    x = g("Add", g.linear_layer(x, denoiser.input_emb), g.constant(denoiser.pos_emb[:, :tokens]))
    x = x if marks is None else g("Add", x, marks)
    for i, layer in enumerate(layers):
        x = g("Add", x, _self_attention(g, layer, x, tokens, bias))
        layer_memory = [g("Gather", name, g.constant(i, int), axis=0) for name in memory]
        x = g("Add", x, _cross_attention(g, layer, x, layer_memory, tokens, memory_bias))
        hidden = g.gelu(g.linear_layer(g.layer_norm(x, layer.norm3), layer.linear1))
        x = g("Add", x, g.linear_layer(hidden, layer.linear2))
    return g.linear_layer(g.layer_norm(x, denoiser.ln_f), denoiser.head)


def _attention_bias(mask: Tensor | None) -> Tensor | None:
    """Added to attention scores: 0 where `mask` is True, minus infinity elsewhere."""
    return None if mask is None else torch.zeros(mask.shape).masked_fill(~mask.cpu(), -math.inf)


def _self_attention(g: GraphBuilder, layer: TransformerLayer, x: str, tokens: int, bias: Tensor | None) -> str:
    attention, c = layer.self_attention, layer.norm1.normalized_shape[0]
    h, d = attention.n_head, c // attention.n_head
    qkv_weight = torch.cat([attention.query.weight / math.sqrt(d), attention.key_value.weight])
    qkv_bias = torch.cat([attention.query.bias / math.sqrt(d), attention.key_value.bias])
    qkv = g.linear(g.layer_norm(x, layer.norm1), qkv_weight, qkv_bias)
    qkv = g("Reshape", qkv, g.int64(0, tokens, 3, h, d))
    q, k, v = (g("Gather", qkv, g.constant(j, int), axis=2) for j in range(3))
    q, v = (g("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, v))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 2, 3, 1]))  # (B, h, T, T)
    if bias is not None:
        scores = g("Add", scores, g.constant(bias))
    y = g("Transpose", g("MatMul", g("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return g.linear_layer(g("Reshape", y, g.int64(0, tokens, c)), attention.out)


def _cross_attention(
    g: GraphBuilder, layer: TransformerLayer, x: str, memory: Sequence[str], tokens: int, bias: Tensor | None
) -> str:
    assert layer.norm2 is not None
    assert layer.cross_attention is not None
    h, c = layer.cross_attention.n_head, layer.norm2.normalized_shape[0]
    keys, offsets, values = memory
    keys, offsets = g("Reshape", keys, g.int64(0, c, -1)), g("Reshape", offsets, g.int64(0, 1, -1))
    scores = g("Add", g("MatMul", g.layer_norm(x, layer.norm2), keys), offsets)
    scores = g("Reshape", scores, g.int64(0, tokens, h, -1))
    if bias is not None:
        scores = g("Add", scores, g.constant(bias[:, None]))
    weights = g("Reshape", g("Softmax", scores, axis=-1), g.int64(0, tokens, -1))
    y = g("MatMul", weights, g("Reshape", values, g.int64(0, -1, c)))
    return g("Add", y, g.constant(layer.cross_attention.out.bias))
