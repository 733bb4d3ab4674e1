"""The diffusion transformer: predicts the noise (or the clean actions) in a noisy action chunk.

Diffusion Policy (Chi et al. 2023), section III-A, "time-series diffusion transformer": action tokens
attend to one another and to a memory of [diffusion step, observation 0, observation 1, ...]; with causal
attention action t sees actions up to t and observations up to t.

Shapes: B batch, T horizon, Ta tokens of actions, To observation steps, Da action, Do features,
C = n_emb, S = 1 + To memory tokens, h heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of diffusion steps (B,) -> (B, width) (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000.0) / (half - 1)))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Attention(nn.Module):
    """Multi-head attention of x (B, T, C) over a memory (B, S, C); self-attention when they are one."""

    def __init__(self, n_emb: int, n_head: int, p_drop: float) -> None:
        super().__init__()
        self.n_head, self.p_drop = n_head, p_drop
        self.query = nn.Linear(n_emb, n_emb)
        self.key_value = nn.Linear(n_emb, 2 * n_emb)
        self.out = nn.Linear(n_emb, n_emb)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        b, t, c = x.shape
        q = self.query(x).view(b, t, self.n_head, -1).transpose(1, 2)  # (B, h, T, C/h)
        k, v = self.key_value(memory).view(b, memory.shape[1], 2, self.n_head, -1).permute(2, 0, 3, 1, 4)
        p = self.p_drop if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer: self-attention, attention to the memory, feed-forward."""

    def __init__(self, n_emb: int, n_head: int, p_drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(n_emb) for _ in range(3))
        self.self_attention = Attention(n_emb, n_head, p_drop)
        self.cross_attention = Attention(n_emb, n_head, p_drop)
        self.linear1, self.linear2 = nn.Linear(n_emb, 4 * n_emb), nn.Linear(4 * n_emb, n_emb)
        self.drop = nn.Dropout(p_drop)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop(self.self_attention(y, y, mask))
        x = x + self.drop(self.cross_attention(self.norm2(x), memory, memory_mask))
        return x + self.drop(self.linear2(self.drop(F.gelu(self.linear1(self.norm3(x))))))


class Denoiser(nn.Module):
    """epsilon_theta(x_k, k, cond): (B, T, Da), (B,), (B, To, Do) -> (B, T, Da)."""

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        horizon: int,
        n_obs_steps: int,
        n_layer: int,
        n_head: int,
        n_emb: int,
        p_drop_emb: float,
        p_drop_attn: float,
        causal_attn: bool,
    ) -> None:
        super().__init__()
        self.n_emb = n_emb
        self.input_emb = nn.Linear(action_dim, n_emb)
        self.pos_emb = nn.Parameter(torch.empty(1, horizon, n_emb))
        self.cond_emb = nn.Linear(cond_dim, n_emb)
        self.cond_pos_emb = nn.Parameter(torch.empty(1, 1 + n_obs_steps, n_emb))
        self.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        self.drop = nn.Dropout(p_drop_emb)
        self.layers = nn.ModuleList(DecoderLayer(n_emb, n_head, p_drop_attn) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, action_dim)
        t, s = torch.arange(horizon)[:, None], torch.arange(1 + n_obs_steps)[None]
        mask = t >= t.T if causal_attn else None  # True: may look
        memory_mask = t >= s - 1 if causal_attn else None  # memory token s is observation s - 1
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("memory_mask", memory_mask, persistent=False)
        self.apply(_initialise)
        nn.init.normal_(self.pos_emb, std=0.02)
        nn.init.normal_(self.cond_pos_emb, std=0.02)

    def forward(self, trajectory: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
        """`timesteps` (B,) or a single one for the whole batch."""
        timesteps = torch.as_tensor(timesteps, device=trajectory.device).expand(trajectory.shape[0])
        time = timestep_embedding(timesteps, self.n_emb)[:, None]  # (B, 1, C)
        features = self.cond_emb(cond)
        memory = torch.cat([time.to(features.dtype), features], dim=1) + self.cond_pos_emb
        memory = self.encoder(self.drop(memory))  # (B, S, C)
        x = self.drop(self.input_emb(trajectory) + self.pos_emb)
        for layer in self.layers:
            x = layer(x, memory, self.mask, self.memory_mask)
        return self.head(self.ln_f(x))

    def decayed(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters with and without weight decay: none on biases, norms, position embeddings."""
        yes = [p for n, p in self.named_parameters() if p.ndim == 2]
        no = [p for n, p in self.named_parameters() if p.ndim != 2]
        return yes, no


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
