"""A deterministic training step.

Everything random in step i (windows, crops, noise, timesteps, dropout) comes from generators seeded by (seed, i), so
resuming is bit-exact. All but dropout is sampled for the global batch and then sharded, so it does not depend on the
number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_cli.core.training_noise import TrainingNoise
from ddp_cli.core.windows import SEED_STRIDE, Batch, slice_batch, to_device
from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.dataloader import BatchLoader, TrainingData
from ddp_cli.training.distributed import Processes
from ddp_cli.training.ema import EMA
from ddp_cli.training.losses import Objective
from ddp_cli.training.optimizer import (
    SafeStep,
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_learning_rate,
)
from ddp_cli.training.step_graph import StepGraph


class Trainer:
    """Policy, data, optimizer and EMA of one run. `total` is the length of the run in steps."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        device: torch.device,
        processes: Processes | None = None,
        total: int = 0,
    ) -> None:
        self.config, self.data, self.device, self.total = config, data, device, total
        self.processes = processes or Processes()
        if self.processes.world_size * config.accumulate > config.batch_size:
            raise ConfigError(
                f"batch_size {config.batch_size} cannot be divided among {self.processes.world_size} processes "
                f"with accumulate {config.accumulate}.",
                "Use fewer processes, a lower accumulate or a larger batch_size.",
            )
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16(device))
        torch.manual_seed(config.seed)
        self.objective = Objective(config)
        self.policy = self.objective.policy
        self._fit_normalizers()
        self.objective.to(device)
        if config.compile:
            for module in (*self.policy.encoders.values(), self.policy.denoiser):
                module.compile()
        self.model: nn.Module = self.objective
        if self.processes.world_size > 1:
            # Inpainting detaches the features: without an auxiliary head the encoders get no gradient.
            has_unused = not config.policy.obs_as_cond and not self.objective.heads
            self.model = DistributedDataParallel(
                self.objective, gradient_as_bucket_view=True, find_unused_parameters=has_unused
            )
        self.optimizer = make_optimizer(config, self.objective, device)
        self.safe_step = SafeStep(self.optimizer, config.clip_grad_norm, device)
        self.ema = EMA(list(self.policy.parameters()), config.ema_inv_gamma, config.ema_power, config.ema_max_value)
        self.shard = self.processes.shard(config.batch_size)
        self.loader = BatchLoader(data.train, config.batch_size, config.seed, self.shard, device)
        self.step_number = 0
        self.graph: StepGraph | None = None
        """Records the steps of a single process on a GPU; without, every kernel is launched by itself."""
        if device.type == "cuda" and self.processes.world_size == 1:
            self.graph = StepGraph(lambda inputs: self._update(*_unflatten(inputs)), device)

    def _fit_normalizers(self) -> None:
        config, arrays = self.config, self.data.train.arrays
        low_dim = {k: arrays[k].cpu() for k in config.policy.low_dim}
        self.policy.normalizer.fit({**low_dim, "action": arrays["action"].cpu()})
        if config.shared_scale and config.policy.obs == "state":
            self.policy.normalizer.fit_shared_scale(low_dim)
        if config.object_weight:
            self.objective.object_scale.fit({"object": arrays["object"].cpu()})

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(self.config, self.step_number, self.total)

    def step(self) -> dict[str, Tensor]:
        """Run one optimizer step; returns the losses of this process's samples by name, and `grad_norm`.

        The values are scalars on the device, so the step does not wait for them.
        """
        config, i = self.config, self.step_number
        set_learning_rate(self.optimizer, self.lr)
        generator = torch.Generator().manual_seed(config.seed * SEED_STRIDE + i)
        noise = self.policy.sample_training_noise(config.batch_size, generator, config.noise_samples)
        torch.manual_seed((config.seed * SEED_STRIDE + i) * 1024 + self.processes.rank)  # dropout
        batch, noise = to_device(self.loader.batch(i), self.device), noise.select(self.shard, self.device)
        self.model.train()
        losses = self.graph(_flatten(batch, noise)) if self.graph else self._update(batch, noise)
        self.ema.step()
        self.step_number += 1
        return losses

    def _update(self, batch: Batch, noise: TrainingNoise) -> dict[str, Tensor]:
        """The part of a step that runs on the device: gradients and optimizer."""
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        size = self.shard.stop - self.shard.start
        micro_batches = list(_split(size, config.accumulate))
        for rows in micro_batches:
            with (
                self._gradient_sync(rows is micro_batches[-1]),
                torch.autocast(self.device.type, torch.bfloat16, self.bf16),
            ):
                losses = self.model(slice_batch(batch, rows), noise.select(rows, self.device))
            weight = (rows.stop - rows.start) / config.batch_size
            with self._gradient_sync(rows is micro_batches[-1]):
                # DistributedDataParallel averages over processes; the sum is the gradient of the global batch
                (losses["total"] * (weight * self.processes.world_size)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * (rows.stop - rows.start)
        norm = self.safe_step()
        return {name: value / size for name, value in sums.items()} | {"grad_norm": norm}

    @contextmanager
    def _gradient_sync(self, enabled: bool) -> Iterator[None]:
        """Exchange gradients between processes only if `enabled`, in the last micro-batch of a step."""
        if isinstance(self.model, DistributedDataParallel) and not enabled:
            with self.model.no_sync():
                yield
        else:
            yield

    @contextmanager
    def ema_weights_applied(self) -> Iterator[None]:
        """Context in which the policy has its EMA weights and is in eval mode."""
        self.policy.eval()
        with self.ema.applied():
            yield

    def ema_weights(self) -> dict[str, Tensor]:
        """State dict of the policy with the EMA weights instead of the raw ones."""
        shadow = dict(zip((n for n, _ in self.policy.named_parameters()), self.ema.shadow, strict=True))
        return {**self.policy.state_dict(), **shadow}

    def state(self) -> dict[str, Any]:
        """Everything `load_state` needs to resume. Random states and the order of the data follow from `step`."""
        return {
            "step": self.step_number,
            "total": self.total,
            "objective": self.objective.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "ema": [p.clone() for p in self.ema.shadow],
            "ema_step": self.ema.steps,
            "skipped": self.safe_step.skipped.clone(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state`; CheckpointError if it does not fit."""
        try:
            self.objective.load_state_dict(state["objective"])
            load_optimizer_state(self.optimizer, state["optimizer"], self.device)
            if self.graph:
                self.graph.reset()
            for shadow, saved in zip(self.ema.shadow, state["ema"], strict=True):
                shadow.copy_(saved)
            self.safe_step.skipped.copy_(state["skipped"])
            self.ema.steps = state["ema_step"]
            self.step_number, self.total = state["step"], state["total"]
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as e:
            raise CheckpointError(
                f"the training state does not fit this run: {str(e).splitlines()[0]}.",
                "It was written by another version of ddp: start a new run, with --init-from to keep its weights.",
            ) from e


def _split(size: int, n_parts: int) -> Iterator[slice]:
    """Split `size` samples into `n_parts` slices whose sizes differ by one at most."""
    for i in range(n_parts):
        yield slice(i * size // n_parts, (i + 1) * size // n_parts)


def _flatten(batch: Batch, noise: TrainingNoise) -> dict[str, Tensor]:
    """The tensors of a step by name."""
    tensors = {f"batch.{key}": x for key, x in batch.items() if key != "obs"}
    tensors |= {f"obs.{key}": x for key, x in batch["obs"].items()}
    tensors |= {f"crop.{key}": x for key, x in noise.crop_offsets.items()}
    tensors |= {} if noise.prefix_lengths is None else {"prefix_lengths": noise.prefix_lengths}
    return tensors | {"noise": noise.noise, "timesteps": noise.timesteps}


def _unflatten(tensors: dict[str, Tensor]) -> tuple[Batch, TrainingNoise]:
    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}

    noise = TrainingNoise(part("crop"), tensors["noise"], tensors["timesteps"], tensors.get("prefix_lengths"))
    return {**part("batch"), "obs": part("obs")}, noise


def has_bf16(device: torch.device) -> bool:
    """Whether the device has fast bfloat16 arithmetic (Ampere or newer; CPUs with AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.cpu._is_avx512_bf16_supported()
