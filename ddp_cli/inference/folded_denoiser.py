"""The denoiser with everything that is constant across the denoising steps computed once.

In the published default (conditioning by tokens, an MLP as condition encoder) the denoiser's memory has one token for
the diffusion step and one per observation, and the MLP encodes each token independently. So the keys and values of all
diffusion steps depend on the weights alone, those of the observations only change between predictions. The projections
of cross-attention are folded into them as well, because a memory of 1 + To tokens is far smaller than the projection
matrices:

    scores   q k^T = (W_q y + b_q) k^T = y [W_q^T k^T] + b_q k^T        C x h S numbers instead of C x C
    output   W_o (p v)  = p [v W_o^T]                                    h S x C numbers instead of C x C

This is exact: the result equals the network's up to rounding.

Shapes: B batch, T tokens, C = n_emb, h heads, d = C / h, S = 1 + To memory tokens, L layers, n denoising steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_cli.core.denoiser import Denoiser, timestep_embedding
from ddp_cli.core.diffusion import DenoiseFn
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.policy_config import PolicyConfig


@dataclass(frozen=True)
class FoldedMemory:
    """Memory tokens folded with the cross-attention projections of all layers (see above)."""

    keys: Tensor  # (L, B, C, h, S)
    offsets: Tensor  # (L, B, 1, h, S)
    values: Tensor  # (L, B, h, S, C)


FoldedDenoiseFn = Callable[[Tensor, FoldedMemory, Tensor | None], Tensor]
"""(trajectory (B, T, D), its folded memory, marks of the given tokens (B, T, C) or None) -> output (B, T, D)."""


def supports_folding(config: PolicyConfig) -> bool:
    """Whether the denoiser of `config` can be folded."""
    return config.obs_as_cond and config.time_as_cond and config.n_cond_layers == 0


def fold(denoiser: Denoiser, memory: Tensor) -> FoldedMemory:
    """Folds encoded memory tokens (B, S, C)."""
    keys, offsets, values = [], [], []
    layers: Any = denoiser.layers
    for layer in layers:
        attention = layer.cross_attention
        h, c = attention.n_head, memory.shape[-1]
        k, v = attention.key_value(memory).view(*memory.shape[:2], 2, h, c // h).unbind(2)  # (B, S, h, d)
        k = k / math.sqrt(c // h)
        keys.append(torch.einsum("hdc,bshd->bchs", attention.query.weight.view(h, -1, c), k))
        offsets.append(torch.einsum("hd,bshd->bhs", attention.query.bias.view(h, -1), k)[:, None])
        values.append(torch.einsum("chd,bshd->bhsc", attention.out.weight.view(c, h, -1), v))
    return FoldedMemory(torch.stack(keys), torch.stack(offsets), torch.stack(values))


class FoldedDenoiser:
    """The denoiser of `policy`, folded: `policy.predict_from_features(..., make_denoiser=folded.condition_on)`.

    `denoise_fn` computes one denoising step; the default runs in torch.
    """

    @torch.no_grad()
    def __init__(self, policy: DiffusionPolicy, denoise_fn: FoldedDenoiseFn | None = None) -> None:
        self.denoiser = policy.denoiser
        self.denoise_fn = denoise_fn or make_torch_denoise_fn(policy.denoiser)
        timesteps = torch.tensor([step.timestep for step in policy.steps], device=policy.device)
        tokens = timestep_embedding(timesteps, self.denoiser.n_emb)[:, None]  # (n, 1, C)
        self.timestep_memory = fold(self.denoiser, self._encode(tokens, slice(0, 1)))  # B = n, S = 1

    def _encode(self, tokens: Tensor, positions: slice) -> Tensor:
        assert self.denoiser.encoder is not None
        return self.denoiser.encoder(tokens + self.denoiser.cond_pos_emb[:, positions])

    @torch.no_grad()
    def condition_on(self, features: Tensor, given: Tensor | None = None) -> DenoiseFn:
        """The denoiser conditioned on features (B, To, Do) and on the steps (B, T) that are given."""
        assert self.denoiser.cond_emb is not None
        obs_memory = fold(self.denoiser, self._encode(self.denoiser.cond_emb(features), slice(1, None)))
        # Position 0 of S belongs to the diffusion step; it is overwritten in every denoising step.
        memory = FoldedMemory(
            F.pad(obs_memory.keys, (1, 0)), F.pad(obs_memory.offsets, (1, 0)), F.pad(obs_memory.values, (0, 0, 1, 0))
        )
        time, marks = self.timestep_memory, self.denoiser.mark_given(given)

        def denoise(x: Tensor, i: int) -> Tensor:
            memory.keys[..., 0] = time.keys[:, i : i + 1, ..., 0]
            memory.offsets[..., 0] = time.offsets[:, i : i + 1, ..., 0]
            memory.values[..., 0, :] = time.values[:, i : i + 1, ..., 0, :]
            return self.denoise_fn(x, memory, marks)

        return denoise


def make_torch_denoise_fn(denoiser: Denoiser) -> FoldedDenoiseFn:
    """The denoiser over a folded memory, in torch."""
    layers: Any = denoiser.layers
    qkv_projections = [  # query, key and value in one matrix product
        (
            torch.cat([layer.self_attention.query.weight, layer.self_attention.key_value.weight]).detach(),
            torch.cat([layer.self_attention.query.bias, layer.self_attention.key_value.bias]).detach(),
        )
        for layer in layers
    ]

    def denoise(x: Tensor, memory: FoldedMemory, marks: Tensor | None) -> Tensor:
        x = denoiser.input_emb(x)
        x = x + denoiser.pos_emb[:, : x.shape[1]]
        x = x if marks is None else x + marks
        b, t, c = x.shape
        masked = None if denoiser.memory_mask is None else ~denoiser.memory_mask[:, None]  # (T, 1, S)
        for i, layer in enumerate(layers):
            attention = layer.self_attention
            qkv = F.linear(layer.norm1(x), *qkv_projections[i]).view(b, t, 3, attention.n_head, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=denoiser.mask)
            x = x + attention.out(y.transpose(1, 2).reshape(b, t, c))
            scores = torch.baddbmm(memory.offsets[i].flatten(2), layer.norm2(x), memory.keys[i].flatten(2))
            scores = scores.view(b, t, attention.n_head, -1)
            if masked is not None:
                scores = scores.masked_fill(masked, -math.inf)
            weights = scores.softmax(-1).flatten(2)
            x = torch.baddbmm(x + layer.cross_attention.out.bias, weights, memory.values[i].flatten(1, 2))
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm3(x))))
        return denoiser.head(denoiser.ln_f(x))

    return denoise
