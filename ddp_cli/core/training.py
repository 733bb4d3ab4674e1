"""The training loop: batches in, checkpoints out.

Everything random in step i (windows, crops, noise, noise levels, dropout) comes from generators seeded by
(seed, i), so a run that was interrupted goes on exactly as it would have gone on.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ddp_cli.config import TrainConfig
from ddp_cli.core.auxiliary import AuxiliaryHeads
from ddp_cli.core.checkpoint import Meta, point_link, save_checkpoint
from ddp_cli.core.normalizer import Normalizer
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.windows import Batch, Windows, batch_index, validation_episodes, window_bounds, window_steps
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError, DataError, DdpError

TIMED_STEPS = 30  # of a run given in minutes: its rate is measured over these, the first 10 not counted


@dataclass(frozen=True)
class Progress:
    """Where training is. `loss` is the mean since the last report, `rate` in steps/s."""

    step: int
    total: int
    loss: float
    lr: float
    rate: float


class Trainer:
    """Policy, data, optimiser and EMA of one run, and the steps between them."""

    def __init__(self, config: TrainConfig, store: Store, device: torch.device) -> None:
        store.check_task(config.policy.task)
        if store.attrs["action"]["convention"] != config.policy.actions:
            raise ConfigError(
                f"'{store.path}' holds {store.attrs['action']['convention']} actions, "
                f"the configuration says {config.policy.actions}.",
                "Leave `actions` out: it follows the store.",
            )
        self.config, self.device = config, device
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16(device))
        self.train_windows, self.val_windows = load_windows(config, store)
        torch.manual_seed(config.seed)
        self.policy = DiffusionPolicy(config.policy)
        arrays = self.train_windows.arrays
        self.policy.normalizer.fit({k: arrays[k] for k in (*config.policy.low_dim, "action")})
        if config.shared_scale and config.policy.obs == "state":
            self.policy.normalizer.fit_shared({k: arrays[k] for k in config.policy.low_dim})
        self.policy.to(device)
        object_dim = config.policy.task.object_dim
        self.heads = AuxiliaryHeads(config.policy, self.policy.feature_dim, object_dim).to(device)
        self.object_scale = Normalizer({"object": object_dim})
        self.object_loss = config.object_loss if config.policy.obs == "image" else 0.0  # others are given it
        if self.object_loss:
            self.object_scale.fit({"object": arrays["object"]})
        self.object_scale.to(device)
        self.optimizer = make_optimizer(config, self.policy, self.heads)
        self.ema = EMAModel(
            self.policy.parameters(),
            decay=config.ema_max_value,
            use_ema_warmup=True,
            inv_gamma=config.ema_inv_gamma,
            power=config.ema_power,
            # diffusers counts a step before it computes the decay, the published code after
            update_after_step=1,
            foreach=True,
        )
        self.step_number = 0
        self.total = 0

    @property
    def steps_per_epoch(self) -> float:
        return len(self.train_windows) / self.config.batch_size

    def step(self) -> Tensor:
        """One optimiser step; returns the loss (on the device)."""
        config, i = self.config, self.step_number
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, i, self.total)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + i)
        torch.manual_seed(config.seed * 1_000_003 + i)  # dropout
        batch = self.to_device(
            self.train_windows.batch(batch_index(len(self.train_windows), config.batch_size, i, config.seed))
        )
        self.policy.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            cond = self.policy.encode_obs(batch["obs"], generator, config.policy.frames)
            actions = self.policy.normalizer.normalize("action", batch["action"])
            loss = total = self.policy.loss_given(
                cond, actions, generator=generator, noise_samples=config.noise_samples
            )
            if config.action_loss:
                total = total + config.action_loss * self.heads.action_loss(cond, actions)
            if self.object_loss:
                target = self.object_scale.normalize("object", batch["object"])
                total = total + self.object_loss * self.heads.object_loss(cond, target)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.ema.step(self.policy.parameters())
        self.step_number += 1
        return loss.detach()

    def to_device(self, batch: Batch) -> Batch:
        """The batch on the training device."""
        moved = {k: v.to(self.device, non_blocking=True) for k, v in batch.items() if k != "obs"}
        return moved | {"obs": {k: v.to(self.device, non_blocking=True) for k, v in batch["obs"].items()}}

    @torch.no_grad()
    def validation_loss(self, batches: int = 4) -> float:
        """Noise loss of the EMA policy on held-out windows, with fixed windows and noise.

        It shows over-fitting, not success: do not choose checkpoints by it.
        """
        self.policy.eval()
        self.ema.store(self.policy.parameters())
        self.ema.copy_to(self.policy.parameters())
        generator = torch.Generator().manual_seed(self.config.seed)
        size = min(self.config.batch_size, len(self.val_windows))
        losses = [
            self.policy.compute_loss(
                self.to_device(self.val_windows.batch(batch_index(len(self.val_windows), size, i, 0))),
                generator=generator,
            )
            for i in range(batches)
        ]
        self.ema.restore(self.policy.parameters())
        return float(torch.stack(losses).mean())

    def ema_weights(self) -> dict[str, Tensor]:
        """State dict of the policy with EMA weights in the place of the raw ones."""
        shadow = dict(zip((n for n, _ in self.policy.named_parameters()), self.ema.shadow_params, strict=True))
        return {**self.policy.state_dict(), **shadow}

    def state(self) -> dict[str, Any]:
        """Everything `load_state` needs to go on."""
        return {
            "step": self.step_number,
            "total": self.total,
            "policy": self.policy.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": [p.clone() for p in self.ema.shadow_params],
            "ema_step": self.ema.optimization_step,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self.policy.load_state_dict(state["policy"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, saved in zip(self.ema.shadow_params, state["ema"], strict=True):
            mine.copy_(saved)
        self.ema.optimization_step = state["ema_step"]
        self.step_number, self.total = state["step"], state["total"]


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is fast there (Ampere or newer; CPUs with AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.cpu._is_avx512_bf16_supported()


def load_windows(config: TrainConfig, store: Store) -> tuple[Windows, Windows]:
    """Training and validation windows of a store, split by episode."""
    policy = config.policy
    keys = [*policy.image_keys, *policy.low_dim]
    extra = ["object"] if config.object_loss and policy.obs == "image" else []
    arrays = {k: store.read(k) for k in (*keys, *extra, "action")}
    steps = int(store.episode_ends[-1])
    for key, array in arrays.items():
        if len(array) != steps:
            raise DataError(
                f"'{store.path}': data/{key} has {len(array)} steps, expected {steps}.", "Convert the demos again."
            )
    held_out = validation_episodes(len(store.episode_ends), config.val_ratio, config.seed)
    parts = []
    for mask in (~held_out, held_out):
        bounds = window_bounds(store.episode_ends, policy.horizon, policy.pad_before, policy.pad_after, mask)
        parts.append(Windows(arrays, window_steps(bounds, policy.horizon), keys, policy.frames, extra))
    if not len(parts[0]):
        raise ConfigError(
            f"no demo of '{store.path}' is long enough for horizon {policy.horizon}.",
            f"The longest has {int(np.diff(store.episode_ends, prepend=0).max())} steps: set a shorter horizon.",
        )
    return parts[0], parts[1]


def make_optimizer(config: TrainConfig, policy: DiffusionPolicy, head: nn.Module) -> torch.optim.AdamW:
    """AdamW with the published groups of weight decay."""
    decayed, plain = policy.denoiser.decayed()
    groups = [
        {"params": decayed, "weight_decay": config.transformer_weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {
            "params": [*policy.encoders.parameters(), *head.parameters()],
            "weight_decay": config.obs_encoder_weight_decay,
        },
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up, then half a cosine down to 0 at `total`."""
    warmup = min(config.warmup_steps, total // 20)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def planned_steps(config: TrainConfig, store: Store, device: torch.device) -> tuple[int, float]:
    """How many steps the run has, and the measured steps/s (0 unless the run is given in minutes).

    For minutes a throw-away copy is trained for a few steps, and the rate decides.
    """
    if config.steps:
        return config.steps, 0.0
    trainer = Trainer(config, store, device)
    if config.epochs:
        return max(1, round(config.epochs * trainer.steps_per_epoch)), 0.0
    trainer.total = 1_000_000
    started = time.perf_counter()
    begun = started
    for i in range(TIMED_STEPS):
        if i == TIMED_STEPS // 3:
            started = time.perf_counter()
        float(trainer.step())
    now = time.perf_counter()
    rate = (TIMED_STEPS - TIMED_STEPS // 3) / (now - started)
    left = config.minutes * 60.0 - (now - begun)
    return max(1, int(left * rate)), rate


def train(
    trainer: Trainer,
    run: Path,
    meta: Meta,
    report: Callable[[Progress], None],
    log: Callable[[dict[str, float]], None],
    should_stop: Callable[[], bool],
) -> Path | None:
    """Trains to `trainer.total` steps, or until `should_stop()`; returns the last checkpoint, None before any.

    `report` is called after every step, `log` with numbers for the record now and then.
    """
    config, folder = trainer.config, run / "checkpoints"
    every = config.checkpoint_every or max(1, trainer.total // 10)
    log_every = max(1, min(50, trainer.total // 20))
    losses: list[Tensor] = []
    clock, since = time.perf_counter(), trainer.step_number
    shown = math.nan
    while True:
        done = trainer.step_number
        stop = done >= trainer.total or should_stop()
        saving = done > 0 and (stop or done % every == 0)
        if losses and (saving or done % log_every == 0):
            shown = mean_loss(losses, done)
            losses.clear()
            rate = (done - since) / max(1e-9, time.perf_counter() - clock)
            lr = learning_rate(config, done - 1, trainer.total)
            decay = trainer.ema.cur_decay_value or 0.0
            log({"step": done, "loss": shown, "lr": lr, "steps_per_s": rate, "ema_decay": decay})
        if saving:
            path = folder / f"step-{done:08d}"
            if done > since:  # otherwise it is the one that training went on from
                if len(trainer.val_windows):
                    log({"step": done, "val_loss": trainer.validation_loss()})
                about: Meta = {**meta, "step": done, "total_steps": trainer.total}
                save_checkpoint(path, config.policy, trainer.ema_weights(), about, trainer.state())
            for name in ("last", "best"):
                point_link(folder / name, path)
        if stop:
            return folder / "last" if done else None
        losses.append(trainer.step())
        rate = (trainer.step_number - since) / (time.perf_counter() - clock)
        if math.isnan(shown):
            shown = float(losses[-1])
        report(Progress(trainer.step_number, trainer.total, shown, learning_rate(config, done, trainer.total), rate))


def mean_loss(losses: list[Tensor], step: int) -> float:
    """Their mean; DdpError when it is not finite, so that no such weights are ever saved."""
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise DdpError(
            f"the loss is {mean} at step {step}; the checkpoints before it are whole.",
            "Start a new run with a lower learning rate, --set lr=...",
        )
    return mean


def keep_freed_memory() -> None:
    """Tells glibc to reuse large buffers instead of returning them to the kernel after every operation.

    On a CPU the page faults of fresh buffers cost a third of a training step. Elsewhere: no effect.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
