"""The diffusion transformer: predicts the noise (or the clean trajectory) from a noisy trajectory.

Diffusion Policy (Chi et al. 2023), section III-A, "time-series diffusion transformer": action tokens attend to each
other and to a memory of [diffusion step k, observation 0, observation 1, ...]. With causal attention, action t attends
to actions and observations up to t.

When inpainting, the tokens are [action, features] and the memory is k alone. Without `time_as_cond` there is no memory,
and k is the first token of a transformer encoder.

With `prefix_steps`, some tokens are given clean while the others are noisy. All share the token of k, so a learned
embedding is added to the given ones. It marks them as clean, which a time of 0 for each of them does in the paper
(core/prefix.py); the memory stays the same for all tokens, so it can still be folded (inference/folded_denoiser.py).

Shapes: B batch, T tokens, To observation steps, D trajectory width (Da, or Da + Do when inpainting), Do features,
C = n_emb, S memory tokens (1 + To, or 1), h heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddp_cli.policy_config import PolicyConfig


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of diffusion steps (B,) -> (B, width) (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=timesteps.device) * (-math.log(10000.0) / (half - 1)))
    angle = timesteps.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Dropout(nn.Module):
    """nn.Dropout, four times as fast on a CPU, where it uses 16 random bits per value: p is rounded to 1/65536.

    Where that would change p or 1 - p by more than 1%, it is nn.Dropout.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        keep = round((1.0 - self.p) * 65536)  # probability in units of 1/65536
        if not self.training or x.device.type != "cpu" or not 64 <= keep <= 65536 - 64:
            return F.dropout(x, self.p, self.training)
        random = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = random.view(torch.int16)[: x.numel()].view(x.shape)
        return x * (bits < keep - 32768).to(x.dtype) * (65536 / keep)


class Attention(nn.Module):
    """Multi-head attention of x (B, T, C) to a memory (B, S, C); self-attention when both are the same tensor."""

    def __init__(self, n_emb: int, n_head: int, p_drop: float) -> None:
        super().__init__()
        self.n_head, self.drop = n_head, Dropout(p_drop)
        self.query = nn.Linear(n_emb, n_emb)
        self.key_value = nn.Linear(n_emb, 2 * n_emb)
        self.out = nn.Linear(n_emb, n_emb)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        b, t, c = x.shape
        q = self.query(x).view(b, t, self.n_head, -1).transpose(1, 2)  # (B, h, T, C/h)
        k, v = self.key_value(memory).view(b, memory.shape[1], 2, self.n_head, -1).permute(2, 0, 3, 1, 4)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            y = self._attend_in_bf16(q, k, v, mask)
        else:
            p = self.drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.out(y.transpose(1, 2).reshape(b, t, c))

    def _attend_in_bf16(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """`F.scaled_dot_product_attention`, whose kernel for CPUs takes two to eight times as long for ten tokens."""
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.drop(scores.softmax(-1)) @ v


class TransformerLayer(nn.Module):
    """Pre-norm layer: self-attention, cross-attention to a memory (in a decoder), feed-forward."""

    def __init__(self, n_emb: int, n_head: int, p_drop: float, decoder: bool) -> None:
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(n_emb), nn.LayerNorm(n_emb)
        self.self_attention = Attention(n_emb, n_head, p_drop)
        self.norm2 = nn.LayerNorm(n_emb) if decoder else None
        self.cross_attention = Attention(n_emb, n_head, p_drop) if decoder else None
        self.linear1, self.linear2 = nn.Linear(n_emb, 4 * n_emb), nn.Linear(4 * n_emb, n_emb)
        self.drop = Dropout(p_drop)

    def forward(
        self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop(self.self_attention(y, y, mask))
        if self.cross_attention is not None and self.norm2 is not None:
            x = x + self.drop(self.cross_attention(self.norm2(x), memory, memory_mask))
        return x + self.drop(self.linear2(self.drop(F.gelu(self.linear1(self.norm3(x))))))


class ConditionEncoder(nn.Module):
    """Encodes the memory (B, S, C): an MLP per token (n_cond_layers 0), or n_cond_layers pre-norm encoder layers."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        c = config.n_emb
        self.layers = nn.ModuleList(
            TransformerLayer(c, config.n_head, config.p_drop_attn, decoder=False) for _ in range(config.n_cond_layers)
        )
        mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.Mish(), nn.Linear(4 * c, c))
        self.mlp = None if config.n_cond_layers else mlp

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, None)
        return self.mlp(x) if self.mlp is not None else x


class Denoiser(nn.Module):
    """epsilon_theta(x_k, k, cond): (B, T, D), (B,), (B, To, Do) -> (B, T, D)."""

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(self, config: PolicyConfig, feature_dim: int) -> None:
        super().__init__()
        c, to = config.n_emb, config.n_obs_steps
        self.trajectory_width = config.action_dim + (0 if config.obs_as_cond else feature_dim)
        self.n_emb = c
        self.input_emb = nn.Linear(self.trajectory_width, c)
        tokens = config.horizon + (0 if config.time_as_cond else 1)
        self.pos_emb = nn.Parameter(torch.empty(1, tokens, c))
        # Initially zero: it takes no random numbers, and a network that was trained without it computes the same.
        self.prefix_emb = nn.Parameter(torch.zeros(c)) if config.prefix_steps else None
        self.cond_emb = nn.Linear(feature_dim, c) if config.obs_as_cond else None
        self.encoder = ConditionEncoder(config) if config.time_as_cond else None
        if config.time_as_cond:
            self.cond_pos_emb = nn.Parameter(torch.empty(1, 1 + (to if config.obs_as_cond else 0), c))
        self.drop = Dropout(config.p_drop_emb)
        self.layers = nn.ModuleList(
            TransformerLayer(c, config.n_head, config.p_drop_attn, decoder=config.time_as_cond)
            for _ in range(config.n_layer)
        )
        self.ln_f = nn.LayerNorm(c)
        self.head = nn.Linear(c, self.trajectory_width)
        mask, memory_mask = causal_masks(config)
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("memory_mask", memory_mask, persistent=False)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("pos_emb"):
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self, trajectory: Tensor, timesteps: Tensor, cond: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """`timesteps` is (B,), or a scalar for the whole batch; `cond` is None when inpainting. `given` (B, T) bool
        says which tokens are clean; None: none.
        """
        timesteps = torch.as_tensor(timesteps, device=trajectory.device).expand(trajectory.shape[0])
        x = self.input_emb(trajectory)  # (B, T, C)
        time = timestep_embedding(timesteps, self.n_emb)[:, None].to(x.dtype)  # (B, 1, C)
        if self.encoder is None:
            x = torch.cat([time, x], dim=1)
            memory = None
        else:
            memory = time if cond is None or self.cond_emb is None else torch.cat([time, self.cond_emb(cond)], dim=1)
            memory = self.encoder(self.drop(memory + self.cond_pos_emb))  # (B, S, C)
        x = x + self.pos_emb[:, : x.shape[1]]
        marks = self.mark_given(given)
        x = self.drop(x if marks is None else x + marks)
        for layer in self.layers:
            x = layer(x, self.mask, memory, self.memory_mask)
        x = self.head(self.ln_f(x))
        return x[:, 1:] if self.encoder is None else x

    def mark_given(self, given: Tensor | None) -> Tensor | None:
        """What is added to the tokens (B, T, C) to mark those that are `given` (B, T); None: nothing."""
        return None if given is None or self.prefix_emb is None else given[..., None] * self.prefix_emb


def causal_masks(config: PolicyConfig) -> tuple[Tensor | None, Tensor | None]:
    """Attention masks, True where attention is allowed: (T, T) among the tokens, (T, S) from tokens to memory.

    Token i belongs to step `trajectory_start` + i of the window. Memory token s belongs to observation s - 1; s = 0 is
    the diffusion step, which all tokens attend to. None: no mask.
    """
    if not config.causal_attn:
        return None, None
    n_tokens = config.trajectory_steps + (0 if config.time_as_cond else 1)
    t = torch.arange(n_tokens)[:, None]
    s = torch.arange(1 + config.n_obs_steps)[None]
    return t >= t.T, config.trajectory_start + t >= s - 1 if config.obs_as_cond else None


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
