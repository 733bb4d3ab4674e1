"""Training runs: starting, resuming and training them. `run_folder.py` says what is in their folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ddp_cli.config import PolicyConfig, TrainConfig
from ddp_cli.core.checkpoint import Meta, list_checkpoints, load_meta, load_train_state, load_weights
from ddp_cli.data.image_cache import memory_budget
from ddp_cli.data.store import Store
from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.distributed import Processes
from ddp_cli.training.loop import Callbacks, plan_steps, train
from ddp_cli.training.metrics import Metrics
from ddp_cli.training.run_folder import (
    check_new_run,
    checkpoint_meta,
    create_run_folder,
    open_run_folder,
    read_run_config,
)
from ddp_cli.training.trainer import Trainer, keep_freed_memory

if TYPE_CHECKING:
    from filelock import BaseFileLock

SAME_SHAPE_SETTINGS = (
    "n_head", "causal_attn", "prediction_type", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule",
)  # fmt: skip
"""Settings that change what a policy computes without changing the shapes of its weights."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run that is ready to train. `rate` is the measured steps/s, 0 if its length was not given in minutes."""

    folder: Path
    trainer: Trainer
    meta: Meta
    rate: float = 0.0
    lock: BaseFileLock | None = None
    """Held as long as this process trains the run; only in the main process."""


def create_run(
    folder: Path,
    config: TrainConfig,
    store: Store,
    device: torch.device,
    info: Log,
    processes: Processes | None = None,
    init_from: Path | None = None,
) -> Run:
    """Create a run in `folder`, which must not exist; this fixes its length in steps.

    With `init_from` the run starts with the weights and the normalizer of that checkpoint.
    """
    processes = processes or Processes()
    processes.run_on_main(lambda: check_new_run(folder))
    trainer, rate = _build_trainer(config, store, device, info, processes, None)
    if init_from:
        load_initial_weights(trainer, init_from)
    meta = checkpoint_meta(config, store)
    lock: list[BaseFileLock] = []  # only the main process has it: a lock cannot be sent to the others
    processes.run_on_main(lambda: lock.append(create_run_folder(folder, trainer, meta, store, init_from)))
    return Run(folder, trainer, meta, rate, *lock)


def resume_run(folder: Path, device: torch.device, warn: Log, info: Log, processes: Processes | None = None) -> Run:
    """Load the run in `folder` at its newest complete checkpoint; damaged ones are skipped with a warning.

    The number of processes may differ from before.
    """
    processes = processes or Processes()
    lock: list[BaseFileLock] = []
    processes.run_on_main(lambda: lock.append(open_run_folder(folder)))
    run_config = processes.run_on_main(lambda: read_run_config(folder))
    store = Store(run_config.store)
    trainer, _ = _build_trainer(run_config.train, store, device, info, processes, run_config.total_steps)
    run = Run(folder, trainer, checkpoint_meta(run_config.train, store), 0.0, *lock)
    newest: Path | None = None
    for path in reversed(processes.run_on_main(lambda: list_checkpoints(folder))):
        error = _load_state(trainer, path)
        if not processes.any(bool(error)):
            return run
        warn(f"{error} Trying the previous checkpoint.")
        newest = newest or path
    if newest:
        raise CheckpointError(
            f"training cannot resume from any checkpoint of '{folder}'; they are left unchanged.",
            f"Start a new run with the weights of the newest: --init-from {newest}.",
        )
    warn(f"'{folder}' has no checkpoint yet: starting at step 0")
    return run


def _load_state(trainer: Trainer, checkpoint: Path) -> str:
    """Load the training state of a checkpoint; returns an error message, empty on success."""
    try:
        trainer.load_state(load_train_state(checkpoint))
    except CheckpointError as e:
        return f"{checkpoint.name}: {e.message}"
    return ""


def _build_trainer(
    config: TrainConfig, store: Store, device: torch.device, info: Log, processes: Processes, total: int | None
) -> tuple[Trainer, float]:
    """The trainer and the measured steps/s. Without `total`, the length is planned from the configuration."""
    _check_store(config, store)
    keep_freed_memory()
    # One process of each machine decodes what does not fit in memory; all use the budget of the main process.
    budget = processes.run_on_main(lambda: memory_budget(config.memory_gb)) / processes.local_world_size
    decodes = processes.local_rank == 0
    data = load_training_data(config, store, device, info, budget) if decodes else None
    processes.gather(None)
    data = data or load_training_data(config, store, device, info, budget, write=False)
    rate = 0.0
    if total is None:
        total, rate = plan_steps(config, data, device, processes)
    return Trainer(config, data, device, processes, total), rate


def _check_store(config: TrainConfig, store: Store) -> None:
    store.check_task(config.policy.task)
    if store.attrs["action"]["convention"] != config.policy.actions:
        raise ConfigError(
            f"'{store.path}' holds {store.attrs['action']['convention']} actions, "
            f"the configuration says {config.policy.actions}.",
            "Leave `actions` out: the default is the convention of the store.",
        )


def load_initial_weights(trainer: Trainer, checkpoint: Path) -> None:
    """Load the weights and the normalizer of `checkpoint`; ConfigError lists what does not fit."""
    weights, expected = load_weights(checkpoint), trainer.policy.state_dict()
    differences = [f"{name} is missing" for name in expected if name not in weights] + [
        f"{name} is not expected" for name in weights if name not in expected
    ]
    differences += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(weight.shape)}"
        for name, weight in expected.items()
        if name in weights and weights[name].shape != weight.shape
    ]
    checkpoint_config = PolicyConfig(**load_meta(checkpoint)["policy"])  # type: ignore[arg-type]
    config = trainer.config.policy
    differences += [
        f"{name} is {getattr(checkpoint_config, name)}, expected {getattr(config, name)}"
        for name in SAME_SHAPE_SETTINGS
        if getattr(checkpoint_config, name) != getattr(config, name)
    ]
    if differences:
        raise ConfigError(
            f"the weights of '{checkpoint}' do not fit, {len(differences)} differences: {'; '.join(differences)}.",
            "Train the same architecture: use the settings in the checkpoint's config.json.",
        )
    trainer.policy.load_state_dict(weights)
    for shadow, parameter in zip(trainer.ema.shadow_params, trainer.policy.parameters(), strict=True):
        shadow.copy_(parameter.detach())


def run_training(run: Run, callbacks: Callbacks, wandb: bool = False) -> Path | None:
    """Train `run` to its end, or until `should_stop()`; returns its last checkpoint, None if there is none.

    Metrics are recorded in the run's folder; `on_metrics` is replaced for that.
    """
    if not run.trainer.processes.is_main:
        return train(run.trainer, run.folder, run.meta, callbacks)
    with Metrics(run.folder, run.trainer.step_number, wandb) as metrics:
        callbacks.success_rates |= metrics.success_rates()
        callbacks.on_metrics = metrics.log
        return train(run.trainer, run.folder, run.meta, callbacks)
