"""The denoising chain, with everything that does not change along it computed once.

For the published default (conditioning by tokens, a condition encoder that is an MLP) the memory of the
denoiser has one token for the diffusion step and one per observation, and each goes through the encoder
alone. So the keys and values of all diffusion steps follow from the weights, those of the observations from
one look at the world. What cross-attention makes of them is folded further, because a memory of 1 + To tokens
is far smaller than the matrices around it:

    scores   q k^T = (W_q y + b_q) k^T = y [W_q^T k^T] + b_q k^T        C x h S numbers instead of C x C
    output   W_o (p v)  = p [v W_o^T]                                    h S x C numbers instead of C x C

Nothing is approximated: the result equals the network's but for rounding.

Shapes: B batch, T tokens, C = n_emb, h heads, d = C / h, S = 1 + To memory tokens, L layers, n steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_cli.config import PolicyConfig
from ddp_cli.core.denoiser import Denoiser, timestep_embedding
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.errors import ConfigError


@dataclass(frozen=True)
class FoldedMemory:
    """What all layers need to know of the memory, folded (see above)."""

    keys: Tensor  # (L, B, C, h, S)
    offsets: Tensor  # (L, B, 1, h, S)
    values: Tensor  # (L, B, h, S, C)


Network = Callable[[Tensor, FoldedMemory], Tensor]
"""From a trajectory (B, T, D) and its folded memory to the denoiser's output (B, T, D)."""


def supports_folding(config: PolicyConfig) -> bool:
    """Whether a policy's denoiser is of the kind that can be folded."""
    return config.obs_as_cond and config.time_as_cond and config.n_cond_layers == 0


def fold(denoiser: Denoiser, memory: Tensor) -> FoldedMemory:
    """Folds memory tokens (B, S, C), already encoded."""
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
    """`DiffusionPolicy.predict_action(..., begin=chain.begin)`: its denoiser, folded.

    `network` computes one step; by default torch does.
    """

    @torch.no_grad()
    def __init__(self, policy: DiffusionPolicy, network: Network | None = None) -> None:
        self.denoiser = policy.denoiser
        self.network = network or torch_denoiser(policy.denoiser)
        timesteps = torch.tensor([step.timestep for step in policy.steps], device=policy.device)
        tokens = timestep_embedding(timesteps, self.denoiser.n_emb)[:, None]
        self.time = fold(self.denoiser, self._encoded(tokens, slice(0, 1)))  # B = n

    def _encoded(self, tokens: Tensor, places: slice) -> Tensor:
        assert self.denoiser.encoder is not None
        return self.denoiser.encoder(tokens + self.denoiser.cond_pos_emb[:, places])

    @torch.no_grad()
    def begin(self, features: Tensor) -> Callable[[Tensor, int], Tensor]:
        """From features (B, To, Do) to the network's output for (trajectory, step of the chain)."""
        assert self.denoiser.cond_emb is not None
        seen = fold(self.denoiser, self._encoded(self.denoiser.cond_emb(features), slice(1, None)))
        # The first place of S is for the diffusion step: it is written anew before every step.
        memory = FoldedMemory(F.pad(seen.keys, (1, 0)), F.pad(seen.offsets, (1, 0)), F.pad(seen.values, (0, 0, 1, 0)))

        def predict(x: Tensor, i: int) -> Tensor:
            memory.keys[..., 0] = self.time.keys[:, i : i + 1, ..., 0]
            memory.offsets[..., 0] = self.time.offsets[:, i : i + 1, ..., 0]
            memory.values[..., 0, :] = self.time.values[:, i : i + 1, ..., 0, :]
            return self.network(x, memory)

        return predict


def torch_denoiser(denoiser: Denoiser) -> Network:
    """The denoiser over a folded memory, in torch."""
    layers: Any = denoiser.layers
    joined = [  # one product for query, key and value
        (
            torch.cat([layer.self_attention.query.weight, layer.self_attention.key_value.weight]).detach(),
            torch.cat([layer.self_attention.query.bias, layer.self_attention.key_value.bias]).detach(),
        )
        for layer in layers
    ]

    def network(x: Tensor, memory: FoldedMemory) -> Tensor:
        x = denoiser.input_emb(x)
        x = x + denoiser.pos_emb[:, : x.shape[1]]
        b, t, c = x.shape
        hidden = None if denoiser.memory_mask is None else ~denoiser.memory_mask[:, None]  # (T, 1, S)
        for i, layer in enumerate(layers):
            own = layer.self_attention
            qkv = F.linear(layer.norm1(x), *joined[i]).view(b, t, 3, own.n_head, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=denoiser.mask)
            x = x + own.out(y.transpose(1, 2).reshape(b, t, c))
            scores = torch.baddbmm(memory.offsets[i].flatten(2), layer.norm2(x), memory.keys[i].flatten(2))
            scores = scores.view(b, t, own.n_head, -1)
            if hidden is not None:
                scores = scores.masked_fill(hidden, -math.inf)
            weights = scores.softmax(-1).flatten(2)
            x = torch.baddbmm(x + layer.cross_attention.out.bias, weights, memory.values[i].flatten(1, 2))
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm3(x))))
        return denoiser.head(denoiser.ln_f(x))

    return network


def compiled_denoiser(denoiser: Denoiser) -> Network:
    """`torch_denoiser` through torch.compile; on a GPU with CUDA graphs. It compiles when it is first called."""
    on_gpu = denoiser.pos_emb.device.type == "cuda"
    compiled = torch.compile(torch_denoiser(denoiser), dynamic=False, mode="reduce-overhead" if on_gpu else "default")

    def network(x: Tensor, memory: FoldedMemory) -> Tensor:
        try:
            return compiled(x, memory)
        except Exception as e:  # a missing compiler shows as one of many
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise ConfigError(f"torch.compile does not work here: {reason}", "Use --engine torch.") from e

    return network
