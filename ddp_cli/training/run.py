"""Training runs: starting and training them. resume.py continues them; run_folder.py says what is in their folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ddp_cli.core.checkpoint import Meta
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError
from ddp_cli.locks import Lock
from ddp_cli.memory import keep_freed_memory, memory_budget
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.distributed import Processes
from ddp_cli.training.initial_weights import load_initial_weights
from ddp_cli.training.loop import Callbacks, train
from ddp_cli.training.metrics import Metrics
from ddp_cli.training.run_folder import (
    NewRunFolder,
    checkpoint_meta,
    create_run_folder,
)
from ddp_cli.training.run_length import plan_steps
from ddp_cli.training.trainer import Trainer

Log = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run that is ready to train. `rate` is the measured steps/s, 0 if its length was not given in minutes."""

    folder: Path
    trainer: Trainer
    meta: Meta
    rate: float = 0.0
    lock: Lock | None = None
    """Held as long as this process trains the run; only in the main process."""


def create_run(
    folder: Path,
    config: TrainConfig,
    store: Store,
    device: torch.device,
    info: Log,
    processes: Processes | None = None,
    init_from: Path | None = None,
    numbered: bool = False,
    command: str = "",
) -> Run:
    """Create a run in `folder`, which must not exist; this fixes its length in steps. After an error nothing is left.

    With `init_from` the run starts with the weights and the normalizer of that checkpoint. With `numbered` the folder
    is named NAME-2, NAME-3, ... if there is one already. `command` is recorded as the one that started the run.
    """
    processes = processes or Processes()
    new: list[NewRunFolder] = []  # only the main process has it: a lock cannot be sent to the others

    def create() -> Path:
        new.append(create_run_folder(folder, numbered))
        return new[0].path

    path = processes.run_on_main(create)
    try:
        trainer, rate = build_trainer(config, store, device, info, processes, None)
        if init_from:
            load_initial_weights(trainer, init_from)
        meta = checkpoint_meta(config, store)
        if init_from:
            meta["init_from"] = str(init_from)
        processes.run_on_main(lambda: new[0].write(trainer, meta, store, init_from, command))
    except BaseException:
        for new_folder in new:
            new_folder.remove()
        raise
    return Run(path, trainer, meta, rate, *(new_folder.lock for new_folder in new))


def build_trainer(
    config: TrainConfig, store: Store, device: torch.device, info: Log, processes: Processes, total: int | None
) -> tuple[Trainer, float]:
    """The trainer and the measured steps/s. Without `total`, the length is planned from the configuration."""
    store = _check_store(config, store)
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


def _check_store(config: TrainConfig, store: Store) -> Store:
    """The store with images of the size of the policy's; ConfigError if it does not fit the configuration."""
    if store.attrs["action"]["convention"] != config.policy.actions:
        raise ConfigError(
            f"'{store.path}' holds {store.attrs['action']['convention']} actions, "
            f"the configuration says {config.policy.actions}.",
            "Leave `actions` out: the default is the convention of the store.",
        )
    return store.for_task(config.policy.task)


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
