"""Resumes a run at its newest complete checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from ddp_cli.checkpoint_files import list_checkpoints
from ddp_cli.core.checkpoint import load_meta, load_train_state
from ddp_cli.data.store import Store
from ddp_cli.errors import CheckpointError
from ddp_cli.locks import Lock
from ddp_cli.training.distributed import Processes
from ddp_cli.training.run import Log, Run, build_trainer
from ddp_cli.training.run_folder import checkpoint_meta, open_run_folder, read_run_config, write_store_path
from ddp_cli.training.trainer import Trainer


def resume_run(
    folder: Path,
    device: torch.device,
    warn: Log,
    info: Log,
    processes: Processes | None = None,
    data: Path | None = None,
) -> Run:
    """Load the run in `folder` at its newest complete checkpoint; damaged ones are skipped with a warning.

    `data` is the path of its store, if that was moved; the run remembers it. The number of processes may differ from
    before.
    """
    processes = processes or Processes()
    lock: list[Lock] = []
    processes.run_on_main(lambda: lock.append(open_run_folder(folder)))
    try:
        return _resume(folder, device, warn, info, processes, data, lock)
    except BaseException:
        for held in lock:
            held.release()
        raise


def _resume(
    folder: Path, device: torch.device, warn: Log, info: Log, processes: Processes, data: Path | None, lock: list[Lock]
) -> Run:
    run_config = processes.run_on_main(lambda: read_run_config(folder, data))
    if data:
        processes.run_on_main(lambda: write_store_path(folder, run_config.store))
    store = Store(run_config.store)
    trainer, _ = build_trainer(run_config.train, store, device, info, processes, run_config.total_steps)
    run = Run(folder, trainer, checkpoint_meta(run_config.train, store), 0.0, *lock)
    newest: Path | None = None
    for path in reversed(processes.run_on_main(lambda: list_checkpoints(folder))):
        error = _load_state(trainer, path)
        if not processes.any(bool(error)):
            if origin := load_meta(path).get("init_from"):
                run.meta["init_from"] = origin
            return run
        warn(f"{error} Trying the previous checkpoint.")
        newest = newest or path
    if newest:
        raise CheckpointError(
            f"training cannot resume from any checkpoint of '{folder}'; they are left unchanged.",
            f"Start a new run with the weights of the newest: --init-from {newest}.",
        )
    if run_config.init_from:  # the checkpoint of step 0 had its weights, and was removed
        raise CheckpointError(
            f"'{folder}' has no checkpoint, and it started with the weights of '{run_config.init_from}'.",
            "Start a new run with --init-from.",
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
