"""The folded denoiser (inference/folded_denoiser.py, shapes as there) as nodes of ONNX graphs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddp_cli.core.denoiser import Denoiser, Layer
from ddp_cli.inference.onnx_graph import GraphBuilder


def fold(g: GraphBuilder, denoiser: Denoiser, features: str) -> tuple[str, str, str]:
    """What all layers need to know of features (B, To, Do), as `chain.fold` has it: keys (L, B, C, h, To), offsets
    (L, B, 1, h, To), values (L, B, h, To, C).
    """
    assert denoiser.cond_emb is not None
    assert denoiser.encoder is not None
    assert denoiser.encoder.mlp is not None
    places = denoiser.cond_pos_emb[:, 1:]
    tokens = g("Add", g.layer(features, denoiser.cond_emb), g.constant(places))
    before, _, after = denoiser.encoder.mlp
    memory = g.layer(g.mish(g.layer(tokens, before)), after)
    found: list[tuple[str, str, str]] = []
    layers: Any = denoiser.layers
    for layer in layers:
        attention, c = layer.cross_attention, denoiser.n_emb
        h, d = attention.n_head, c // attention.n_head
        pairs = g.layer(memory, attention.key_value)
        pairs = g("Reshape", pairs, g.whole(0, places.shape[1], 2, h, d))
        k, v = (g("Gather", pairs, g.constant(i, int), axis=2) for i in (0, 1))  # (B, To, h, d)
        k = g("Mul", g("Transpose", k, perm=[0, 2, 3, 1]), g.constant(1 / math.sqrt(d)))  # (B, h, d, To)
        query = attention.query
        keys = g("MatMul", g.constant(query.weight.view(h, d, c).transpose(1, 2)), k)  # (B, h, C, To)
        offsets = g("MatMul", g.constant(query.bias.view(h, 1, d)), k)
        out = attention.out.weight.view(c, h, d).permute(1, 2, 0)
        values = g("MatMul", g("Transpose", v, perm=[0, 2, 1, 3]), g.constant(out))  # (B, h, To, C)
        keys, offsets = (g("Transpose", y, perm=[0, 2, 1, 3]) for y in (keys, offsets))
        found.append((keys, offsets, values))
    keys, offsets, values = (
        g("Concat", *(g("Unsqueeze", y, g.whole(0)) for y in ys), axis=0) for ys in zip(*found, strict=True)
    )
    return keys, offsets, values


def denoise(g: GraphBuilder, denoiser: Denoiser, tokens: int, x: str, memory: Sequence[str]) -> str:
    """From a trajectory (B, T, D) of `tokens` steps and its whole folded memory to the network's output (B, T, D)."""
    layers: Any = denoiser.layers
    hidden = [_hidden(mask) for mask in (denoiser.mask, denoiser.memory_mask)]
    x = g("Add", g.layer(x, denoiser.input_emb), g.constant(denoiser.pos_emb[:, :tokens]))
    for i, layer in enumerate(layers):
        x = g("Add", x, _self_attention(g, layer, x, tokens, hidden[0]))
        parts = [g("Gather", name, g.constant(i, int), axis=0) for name in memory]
        x = g("Add", x, _cross_attention(g, layer, x, parts, tokens, hidden[1]))
        x = g("Add", x, g.layer(g.gelu(g.layer(g.norm(x, layer.norm3), layer.linear1)), layer.linear2))
    return g.layer(g.norm(x, denoiser.ln_f), denoiser.head)


def _hidden(mask: Tensor | None) -> Tensor | None:
    """What is added to scores: 0 where `mask` lets look, minus infinity elsewhere."""
    return None if mask is None else torch.zeros(mask.shape).masked_fill(~mask.cpu(), -math.inf)


def _self_attention(g: GraphBuilder, layer: Layer, x: str, tokens: int, hidden: Tensor | None) -> str:
    own, c = layer.self_attention, layer.norm1.normalized_shape[0]
    d = c // own.n_head
    weight = torch.cat([own.query.weight / math.sqrt(d), own.key_value.weight])
    bias = torch.cat([own.query.bias / math.sqrt(d), own.key_value.bias])
    qkv = g("Reshape", g.linear(g.norm(x, layer.norm1), weight, bias), g.whole(0, tokens, 3, own.n_head, d))
    q, k, v = (g("Gather", qkv, g.constant(j, int), axis=2) for j in range(3))
    q, v = (g("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, v))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 2, 3, 1]))  # (B, h, T, T)
    if hidden is not None:
        scores = g("Add", scores, g.constant(hidden))
    y = g("Transpose", g("MatMul", g("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return g.layer(g("Reshape", y, g.whole(0, tokens, c)), own.out)


def _cross_attention(
    g: GraphBuilder, layer: Layer, x: str, memory: Sequence[str], tokens: int, hidden: Tensor | None
) -> str:
    assert layer.norm2 is not None
    assert layer.cross_attention is not None
    h, c = layer.cross_attention.n_head, layer.norm2.normalized_shape[0]
    keys, offsets, values = memory
    keys, offsets = g("Reshape", keys, g.whole(0, c, -1)), g("Reshape", offsets, g.whole(0, 1, -1))
    scores = g("Add", g("MatMul", g.norm(x, layer.norm2), keys), offsets)
    scores = g("Reshape", scores, g.whole(0, tokens, h, -1))
    if hidden is not None:
        scores = g("Add", scores, g.constant(hidden[:, None]))
    weights = g("Reshape", g("Softmax", scores, axis=-1), g.whole(0, tokens, -1))
    y = g("MatMul", weights, g("Reshape", values, g.whole(0, -1, c)))
    return g("Add", y, g.constant(layer.cross_attention.out.bias))
