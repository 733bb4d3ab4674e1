"""The baseline: image diffusion policy training as people write it, after the source document's code shape.

PyTorch's own `nn.TransformerDecoder`, float32, a Dataset whose DataLoader workers read a window, convert it
to float and crop it sample by sample, an EMA that walks over the parameters. Nothing here is slow on purpose:
images are in memory, only the two observed frames are read, workers persist between epochs.

Shapes: B batch, To observation steps, T horizon, Da action.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from diffusers import DDPMScheduler
from torch import nn

from ddp_cli.config import TrainConfig
from ddp_cli.core.policy import FUSION_DIM
from ddp_cli.core.vision import small_cnn
from ddp_cli.core.windows import window_bounds
from ddp_cli.data.store import Store
from ddp_cli.tasks import CAMERAS, PROPRIO


class PlainDataset(torch.utils.data.Dataset):
    def __init__(self, config: TrainConfig, store: Store) -> None:
        p = config.policy
        self.to, self.crop, self.horizon = p.n_obs_steps, p.crop_shape, p.horizon
        self.arrays = {k: store.read(k) for k in (*CAMERAS, *PROPRIO, "action")}
        self.bounds = window_bounds(store.episode_ends, p.horizon, p.pad_before, p.pad_after)

    def __len__(self) -> int:
        return len(self.bounds)

    def window(self, key: str, i: int, steps: int) -> np.ndarray:
        buffer_start, buffer_end, start, end = self.bounds[i]
        data = self.arrays[key][buffer_start:buffer_end]
        out = np.zeros((self.horizon, *data.shape[1:]), data.dtype)
        out[start:end] = data
        out[:start], out[end:] = data[0], data[-1]
        return out[:steps]

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        sample = {}
        for key in CAMERAS:
            x = np.moveaxis(self.window(key, i, self.to), -1, 1).astype(np.float32) / 255.0
            x = torchvision.transforms.RandomCrop(self.crop)(torch.from_numpy(x))
            sample[key] = x * 2.0 - 1.0
        for key in PROPRIO:
            sample[key] = torch.from_numpy(self.window(key, i, self.to).astype(np.float32))
        sample["action"] = torch.from_numpy(self.window("action", i, self.horizon).astype(np.float32))
        return sample


class PlainEncoder(nn.Module):
    def __init__(self, kind: str, shape: tuple[int, int]) -> None:
        super().__init__()
        self.keypoints = None
        if kind == "small":
            self.net = nn.Sequential(small_cnn(), nn.Flatten())
            seen = self.net(torch.zeros(1, 3, *shape)).shape[1]
        else:
            net = torchvision.models.resnet18(norm_layer=lambda c: nn.GroupNorm(c // 16, c))
            self.net = nn.Sequential(*list(net.children())[:-2])
            self.keypoints, seen = nn.Conv2d(512, 32, 1), 64
        self.linear = nn.Linear(seen, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.net(x)
        return F.relu(self.linear(x if self.keypoints is None else self.points(self.keypoints(x))))

    def points(self, heat: torch.Tensor) -> torch.Tensor:
        b, k, h, w = heat.shape
        attention = F.softmax(heat.reshape(b, k, -1), dim=-1)
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, h, device=heat.device), torch.linspace(-1, 1, w, device=heat.device), indexing="ij"
        )
        points = torch.stack([(attention * x.flatten()).sum(-1), (attention * y.flatten()).sum(-1)], -1)
        return points.flatten(1)


class PlainPolicy(nn.Module):
    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        p = config.policy
        self.config = config
        self.encoders = nn.ModuleDict({key: PlainEncoder(p.encoder, p.crop_shape) for key in CAMERAS})
        features = 64 * len(CAMERAS) + sum(PROPRIO.values())
        self.fusion = None
        if p.fusion:
            w = p.fusion
            self.fusion = nn.Sequential(
                nn.Linear(features, w), nn.GELU(), nn.Linear(w, w), nn.GELU(), nn.Linear(w, FUSION_DIM)
            )
            features += FUSION_DIM
        c = p.n_emb
        self.input_emb, self.cond_emb, self.head = nn.Linear(7, c), nn.Linear(features, c), nn.Linear(c, 7)
        self.pos_emb = nn.Parameter(torch.randn(1, p.horizon, c) * 0.02)
        self.cond_pos_emb = nn.Parameter(torch.randn(1, 1 + p.n_obs_steps, c) * 0.02)
        self.cond_mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.Mish(), nn.Linear(4 * c, c))
        layer = nn.TransformerDecoderLayer(
            c, p.n_head, 4 * c, p.p_drop_attn, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, p.n_layer)
        self.ln_f = nn.LayerNorm(c)
        steps, memory = torch.arange(p.horizon), torch.arange(1 + p.n_obs_steps)
        hidden = torch.full((p.horizon, p.horizon), float("-inf"))
        self.register_buffer("mask", torch.triu(hidden, diagonal=1))
        allowed = steps[:, None] >= memory[None] - 1
        self.register_buffer("memory_mask", torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf")))
        self.scheduler = DDPMScheduler(100, 1e-4, 0.02, "squaredcos_cap_v2", variance_type="fixed_small")

    def denoise(self, noisy: torch.Tensor, k: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        c = self.pos_emb.shape[-1]
        frequency = torch.exp(torch.arange(c // 2, device=k.device) * -(np.log(10000) / (c // 2 - 1)))
        angle = k[:, None] * frequency[None]
        time = torch.cat([angle.sin(), angle.cos()], -1)[:, None].to(noisy.dtype)
        memory = self.cond_mlp(torch.cat([time, self.cond_emb(cond)], 1) + self.cond_pos_emb)
        x = self.input_emb(noisy) + self.pos_emb
        x = self.decoder(x, memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        return self.head(self.ln_f(x))

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pictures = [e(batch[k].flatten(0, 1)).unflatten(0, batch[k].shape[:2]) for k, e in self.encoders.items()]
        cond = torch.cat([*pictures, *(batch[k] for k in PROPRIO)], -1)
        if self.fusion is not None:
            cond = torch.cat([cond, self.fusion(cond)], -1)
        action = batch["action"]
        total = torch.zeros((), device=action.device)
        for _ in range(self.config.noise_samples):
            noise = torch.randn_like(action)
            k = torch.randint(0, 100, (len(action),), device=action.device)
            noisy = self.scheduler.add_noise(action, noise, k)
            target = noise if self.config.policy.prediction_type == "epsilon" else action
            total = total + F.mse_loss(self.denoise(noisy, k, cond), target)
        return total / self.config.noise_samples


class PlainTrainer:
    """One `step(batch)` of the published recipe: AdamW, cosine schedule, EMA parameter by parameter."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.device = device
        self.policy = PlainPolicy(config).to(device)
        self.ema = copy.deepcopy(self.policy).eval()
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=1e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 100_000)
        self.steps = 0

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
        loss = self.policy.loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.steps += 1
        decay = max(0.0, min(0.9999, 1 - (1 + self.steps) ** -0.75))
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.policy.parameters(), strict=True):
                slow.mul_(decay).add_(fast.data, alpha=1 - decay)
        return loss.item()
