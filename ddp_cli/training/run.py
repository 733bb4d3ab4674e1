"""A training run as a folder: what it was asked, where it is, what it has measured.

runs/TASK/NAME/config.json      configuration, length, store
               metrics.jsonl    one line of numbers at a time; TensorBoard events beside it
               checkpoints/     step-00010000/ ..., links `last` and `best`
"""

from __future__ import annotations

import fcntl
import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ddp_cli.config import PolicyConfig, TrainConfig, read_json
from ddp_cli.core.checkpoint import (
    Meta,
    checkpoints,
    load_meta,
    load_train_state,
    load_weights,
    remove_partial_checkpoints,
    save_checkpoint,
)
from ddp_cli.data.store import Store
from ddp_cli.disk import atomic_file, sync
from ddp_cli.errors import CheckpointError, ConfigError, DataError, DdpError
from ddp_cli.tasks import task_name
from ddp_cli.training.dataloader import load_training_data, memory_budget
from ddp_cli.training.distributed import Processes
from ddp_cli.training.loop import Callbacks, checkpoint_path, plan_steps, train
from ddp_cli.training.metrics import Metrics
from ddp_cli.training.trainer import Trainer, keep_freed_memory

FORMAT = 1
LEFTOVERS = (".lock", "checkpoints", ".config.json.partial")  # of a run that was interrupted before it began
MEANING = (
    "n_head", "causal_attn", "prediction_type", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule",
)  # fmt: skip
"""Settings that change what weights mean and not their shapes."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run that is ready to train. `rate` is the measured steps/s, 0 where none was needed."""

    folder: Path
    trainer: Trainer
    meta: Meta
    rate: float = 0.0
    lock: IO[str] | None = None


def create_run(
    folder: Path,
    config: TrainConfig,
    store: Store,
    device: torch.device,
    note: Say,
    processes: Processes | None = None,
    init_from: Path | None = None,
) -> Run:
    """A new run in `folder`, which must not exist; its length in steps is fixed here.

    With `init_from` it begins with the weights and the normaliser of that checkpoint.
    """
    processes = processes or Processes()
    processes.from_first(lambda: _make_room(folder))
    trainer, rate = _trainer(config, store, device, note, processes, None)
    if init_from:
        load_initial_weights(trainer, init_from)
    meta = _meta(trainer, store)
    lock: list[IO[str] | None] = []  # a file cannot be told to other processes
    processes.from_first(lambda: lock.append(_begin_folder(folder, trainer, meta, store, init_from)))
    return Run(folder, trainer, meta, rate, *lock)


def _make_room(folder: Path) -> None:
    """DdpError if `folder` holds anything but what an interruption left of a run that never began."""
    if not folder.exists():
        return
    if (folder / "config.json").exists() or any(p.name not in LEFTOVERS for p in folder.iterdir()):
        raise DdpError(f"'{folder}' exists.", "Add --resume to go on with it, or choose another --name.")
    shutil.rmtree(folder)


def _begin_folder(folder: Path, trainer: Trainer, meta: Meta, store: Store, init_from: Path | None) -> IO[str] | None:
    """Writes what is known at the start; `config.json` comes last, and makes it a run."""
    folder.mkdir(parents=True)
    try:
        lock = _lock(folder)
        if init_from:  # so that resuming needs no other run
            about: Meta = {**meta, "step": 0, "init_from": str(init_from)}
            path = checkpoint_path(folder / "checkpoints", 0)
            save_checkpoint(path, trainer.config.policy, trainer.ema_weights(), about, trainer.state())
        content = {
            "format": FORMAT,
            "id": uuid.uuid4().hex[:8],
            "train": trainer.config.model_dump(mode="json"),
            "total_steps": trainer.total,
            "data": str(store.path.absolute()),
            "store": store_identity(store),
        }
        with atomic_file(folder / "config.json") as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n")
            sync(partial)
        sync(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return lock


def resume_run(folder: Path, device: torch.device, warn: Say, note: Say, processes: Processes | None = None) -> Run:
    """The run in `folder`, at its newest whole checkpoint; damaged ones are passed over with a warning.

    The number of processes may be another one than before.
    """
    processes = processes or Processes()
    lock: list[IO[str] | None] = []
    processes.from_first(lambda: lock.append(_take(folder)))
    config, data, total = processes.from_first(lambda: _asked(folder))
    store = Store(data)
    trainer, _ = _trainer(config, store, device, note, processes, total)
    newest: Path | None = None
    for path in reversed(processes.from_first(lambda: checkpoints(folder))):
        fault = _go_back(trainer, path)
        if not processes.any(bool(fault)):
            return Run(folder, trainer, _meta(trainer, store), 0.0, *lock)
        warn(f"{fault} Trying the one before.")
        newest = newest or path
    if newest:
        raise CheckpointError(
            f"no checkpoint of '{folder}' can be gone on from; they are left as they are.",
            f"Begin a new run with the weights of the newest: --init-from {newest}.",
        )
    warn(f"'{folder}' has no checkpoint yet: beginning at step 0")
    return Run(folder, trainer, _meta(trainer, store), 0.0, *lock)


def _take(folder: Path) -> IO[str] | None:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no run in '{folder}'.", "Start one without --resume.")
    lock = _lock(folder)
    remove_partial_checkpoints(folder)
    return lock


def _asked(folder: Path) -> tuple[TrainConfig, Path, int]:
    """What the run in `folder` was asked: its configuration, store and length. DataError if the store is another."""
    content = read_json(folder / "config.json")
    try:
        if content["format"] != FORMAT:
            raise ConfigError(f"format {content['format']}, this ddp reads {FORMAT}")
        policy, train_values = content["train"].pop("policy"), content["train"]
        config = TrainConfig(policy=PolicyConfig(**policy), **train_values)
        path, identity, total = Path(content["data"]), content["store"], int(content["total_steps"])
        if total < 1:
            raise ConfigError(f"total_steps {total}")
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        cause = e.message if isinstance(e, ConfigError) else f"{type(e).__name__} {e}"
        raise CheckpointError(f"'{folder / 'config.json'}' is damaged: {cause}.", "Start a new run.") from e
    store = Store(path)
    if store_identity(store) != identity:
        raise DataError(
            f"'{store.path}' is not the store that this run began with.", "Restore that one, or start a new run."
        )
    return config, path, total


def _go_back(trainer: Trainer, path: Path) -> str:
    """Puts `trainer` where the checkpoint was taken; returns what is wrong with it, empty if nothing is."""
    try:
        trainer.load_state(load_train_state(path))
    except CheckpointError as e:
        return f"{path.name}: {e.message}"
    return ""


def _trainer(
    config: TrainConfig, store: Store, device: torch.device, note: Say, processes: Processes, total: int | None
) -> tuple[Trainer, float]:
    """The trainer, with its length planned unless `total` is known, and the rate measured for that."""
    _check_store(config, store)
    keep_freed_memory()
    # One process of each machine decodes what does not fit in memory, by a rule that is the same for all.
    budget = processes.from_first(lambda: memory_budget(config)) / processes.local_count
    decoder = processes.local_rank == 0
    data = load_training_data(config, store, device, note, budget) if decoder else None
    processes.gather(None)
    data = data or load_training_data(config, store, device, note, budget, write=False)
    rate = 0.0
    if total is None:
        total, rate = plan_steps(config, data, device, processes)
    return Trainer(config, data, device, processes, total), rate


def load_initial_weights(trainer: Trainer, checkpoint: Path) -> None:
    """Takes the weights and the normaliser of `checkpoint`; ConfigError lists what does not fit."""
    theirs, mine = load_weights(checkpoint), trainer.policy.state_dict()
    faults = [f"no {k} there" for k in mine if k not in theirs] + [
        f"{k} is unknown here" for k in theirs if k not in mine
    ]
    faults += [
        f"{k} is {tuple(theirs[k].shape)}, here {tuple(v.shape)}"
        for k, v in mine.items()
        if k in theirs and theirs[k].shape != v.shape
    ]
    other = PolicyConfig(**load_meta(checkpoint)["policy"])  # type: ignore[arg-type]
    own = trainer.config.policy
    faults += [
        f"{name} is {getattr(other, name)}, here {getattr(own, name)}"
        for name in MEANING
        if getattr(other, name) != getattr(own, name)
    ]
    if faults:
        raise ConfigError(
            f"the weights of '{checkpoint}' do not fit, {len(faults)} differ: {'; '.join(faults)}.",
            "Train the same architecture: take its settings from config.json there.",
        )
    trainer.policy.load_state_dict(theirs)
    for shadow, parameter in zip(trainer.ema.shadow_params, trainer.policy.parameters(), strict=True):
        shadow.copy_(parameter.detach())


def go(run: Run, watchers: Callbacks, wandb: bool = False) -> Path | None:
    """Trains to the end of `run`, or until told to stop; returns its last checkpoint, None before any.

    What `watchers` logs is recorded in the run's folder as well.
    """
    checkpoints_folder = run.folder / "checkpoints"
    if not run.trainer.processes.first:
        return train(run.trainer, checkpoints_folder, run.meta, watchers)
    with Metrics(run.folder, run.trainer.step_number, wandb) as metrics:
        watchers.scores |= metrics.scores()
        watchers.log = metrics.log
        return train(run.trainer, checkpoints_folder, run.meta, watchers)


def newest_run(runs: Path, task: str) -> Path:
    """The run of `task` (a name, or a file that describes it) that was begun or continued last."""
    name = task_name(task)
    found = [p for p in (runs / name).glob("*") if (p / "config.json").is_file()]
    if not found:
        raise CheckpointError(f"no run of the task '{name}' in '{runs}/'.", f"Start one: `ddp train --task {task}`.")

    def touched(run: Path) -> float:
        return max(p.stat().st_mtime for p in (run / "config.json", run / "metrics.jsonl") if p.exists())

    return max(found, key=touched)


def _check_store(config: TrainConfig, store: Store) -> None:
    store.check_task(config.policy.task)
    if store.attrs["action"]["convention"] != config.policy.actions:
        raise ConfigError(
            f"'{store.path}' holds {store.attrs['action']['convention']} actions, "
            f"the configuration says {config.policy.actions}.",
            "Leave `actions` out: it follows the store.",
        )


def _lock(folder: Path) -> IO[str]:
    """Held as long as this process lives: two that train one run would spoil it."""
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.close()
        raise DdpError(f"another process is training '{folder}'.", "Wait for it, or stop it first.") from e
    except OSError:  # a disk that cannot lock
        return lock
    return lock


def store_identity(store: Store) -> dict[str, Any]:
    """What makes a store the same: its source, how it was converted, and the hash of its actions."""
    source = store.attrs["source"]
    return {
        "sha256": source["sha256"],
        "demos": len(source["demos"]),
        "steps": int(store.episode_ends[-1]),
        "actions_sha256": store.content_hash(),
        **{k: store.attrs[k] for k in ("task", "render", "action", "versions")},
    }


def _meta(trainer: Trainer, store: Store) -> Meta:
    return {
        "train": trainer.config.model_dump(mode="json", exclude={"policy"}),
        "render": store.attrs["render"],
        "action": store.attrs["action"],
        "store": store_identity(store),
        "env_args": store.attrs["env_args"],
    }


def store_of(checkpoint: Path) -> Path | None:
    """The store that the run of `checkpoint` was trained on, where it is still there."""
    try:
        path = Path(read_json(checkpoint.parents[1] / "config.json")["data"])
    except (ConfigError, KeyError, TypeError, IndexError):
        return None
    return path if path.exists() else None
