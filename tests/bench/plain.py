"""The baseline: straightforward training of an image diffusion policy, in the structure of the published code.

PyTorch's `nn.TransformerDecoder`, float32, a Dataset whose DataLoader workers read, convert to float and crop one
sample at a time, and an EMA that loops over the parameters. Nothing is slow on purpose: images are in memory, only the
observed frames are read, and workers persist between epochs.

Shapes: B batch, To observation steps, T horizon, Da action, Do features, C embedding, K keypoints.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from diffusers import DDPMScheduler
from torch import nn

from ddp_cli.core.policy import FUSION_DIM
from ddp_cli.core.vision import small_cnn
from ddp_cli.core.windows import window_bounds
from ddp_cli.data.store import Store
from ddp_cli.tasks import CAMERAS, proprioception
from ddp_cli.train_config import TrainConfig


class PlainDataset(torch.utils.data.Dataset):
    """Windows of a store: cameras (To, 3, H, W) in [-1, 1], proprioception (To, d), action (T, Da)."""

    def __init__(self, config: TrainConfig, store: Store) -> None:
        p = config.policy
        self.n_obs_steps, self.crop_shape, self.horizon = p.n_obs_steps, p.crop_shape, p.horizon
        self.arrays = {k: store.read(k) for k in (*CAMERAS, *proprioception(["Panda"]), "action")}
        self.bounds = window_bounds(store.episode_ends, p.horizon, p.pad_before, p.pad_after)

    def __len__(self) -> int:
        return len(self.bounds)

    def window(self, key: str, i: int, n_steps: int) -> np.ndarray:
        """The first `n_steps` of window `i`, padded with the first and last step of the episode."""
        buffer_start, buffer_end, start, end = self.bounds[i]
        data = self.arrays[key][buffer_start:buffer_end]
        out = np.zeros((self.horizon, *data.shape[1:]), data.dtype)
        out[start:end] = data
        out[:start], out[end:] = data[0], data[-1]
        return out[:n_steps]

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        sample = {}
        for key in CAMERAS:
            x = np.moveaxis(self.window(key, i, self.n_obs_steps), -1, 1).astype(np.float32) / 255.0
            x = torchvision.transforms.RandomCrop(self.crop_shape)(torch.from_numpy(x))
            sample[key] = x * 2.0 - 1.0
        for key in proprioception(["Panda"]):
            sample[key] = torch.from_numpy(self.window(key, i, self.n_obs_steps).astype(np.float32))
        sample["action"] = torch.from_numpy(self.window("action", i, self.horizon).astype(np.float32))
        return sample


class PlainEncoder(nn.Module):
    """Features (B, 64) of images (B, 3, H, W), by a small CNN or a ResNet-18 with spatial softmax."""

    def __init__(self, backbone: str, crop_shape: tuple[int, int]) -> None:
        super().__init__()
        self.keypoints = None
        if backbone == "small":
            self.net = nn.Sequential(small_cnn(), nn.Flatten())
            feature_dim = self.net(torch.zeros(1, 3, *crop_shape)).shape[1]
        else:
            net = torchvision.models.resnet18(norm_layer=lambda c: nn.GroupNorm(c // 16, c))
            self.net = nn.Sequential(*list(net.children())[:-2])
            self.keypoints, feature_dim = nn.Conv2d(512, 32, 1), 64
        self.linear = nn.Linear(feature_dim, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.net(x)
        return F.relu(self.linear(x if self.keypoints is None else spatial_softmax(self.keypoints(x))))


def spatial_softmax(heatmaps: torch.Tensor) -> torch.Tensor:
    """(B, K, H, W) -> expected image coordinates (B, 2K), in [-1, 1]."""
    b, k, h, w = heatmaps.shape
    attention = F.softmax(heatmaps.reshape(b, k, -1), dim=-1)
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, h, device=heatmaps.device),
        torch.linspace(-1, 1, w, device=heatmaps.device),
        indexing="ij",
    )
    points = torch.stack([(attention * x.flatten()).sum(-1), (attention * y.flatten()).sum(-1)], -1)
    return points.flatten(1)


class PlainPolicy(nn.Module):
    """Image encoders, fusion and the transformer denoiser."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        p = config.policy
        self.config = config
        self.encoders = nn.ModuleDict({key: PlainEncoder(p.encoder, p.crop_shape) for key in CAMERAS})
        feature_dim = 64 * len(CAMERAS) + sum(proprioception(["Panda"]).values())
        self.fusion = None
        if p.fusion:
            hidden_dim = p.fusion
            self.fusion = nn.Sequential(
                nn.Linear(feature_dim, hidden_dim),
                nn.GELU(),
                nn.Linear(hidden_dim, hidden_dim),
                nn.GELU(),
                nn.Linear(hidden_dim, FUSION_DIM),
            )
            feature_dim += FUSION_DIM
        c = p.n_emb
        self.input_emb, self.cond_emb, self.head = nn.Linear(7, c), nn.Linear(feature_dim, c), nn.Linear(c, 7)
        self.pos_emb = nn.Parameter(torch.randn(1, p.horizon, c) * 0.02)
        self.cond_pos_emb = nn.Parameter(torch.randn(1, 1 + p.n_obs_steps, c) * 0.02)
        self.cond_mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.Mish(), nn.Linear(4 * c, c))
        layer = nn.TransformerDecoderLayer(
            c, p.n_head, 4 * c, p.p_drop_attn, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, p.n_layer)
        self.ln_f = nn.LayerNorm(c)
        steps, memory_positions = torch.arange(p.horizon), torch.arange(1 + p.n_obs_steps)
        self.register_buffer("mask", torch.triu(torch.full((p.horizon, p.horizon), float("-inf")), diagonal=1))
        allowed = steps[:, None] >= memory_positions[None] - 1
        self.register_buffer("memory_mask", torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf")))
        self.scheduler = DDPMScheduler(100, 1e-4, 0.02, "squaredcos_cap_v2", variance_type="fixed_small")

    def denoise(self, noisy: torch.Tensor, k: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """The network's output (B, T, Da) for noisy actions (B, T, Da), timesteps (B,), features (B, To, Do)."""
        c = self.pos_emb.shape[-1]
        frequencies = torch.exp(torch.arange(c // 2, device=k.device) * -(np.log(10000) / (c // 2 - 1)))
        angles = k[:, None] * frequencies[None]
        time = torch.cat([angles.sin(), angles.cos()], -1)[:, None].to(noisy.dtype)
        memory = self.cond_mlp(torch.cat([time, self.cond_emb(cond)], 1) + self.cond_pos_emb)
        x = self.input_emb(noisy) + self.pos_emb
        x = self.decoder(x, memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        return self.head(self.ln_f(x))

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        image_features = [
            encoder(batch[key].flatten(0, 1)).unflatten(0, batch[key].shape[:2])
            for key, encoder in self.encoders.items()
        ]
        cond = torch.cat([*image_features, *(batch[k] for k in proprioception(["Panda"]))], -1)
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
    """The published recipe: AdamW, cosine schedule, EMA updated one parameter at a time."""

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
            for ema_param, param in zip(self.ema.parameters(), self.policy.parameters(), strict=True):
                ema_param.mul_(decay).add_(param.data, alpha=1 - decay)
        return loss.item()
