"""A training run as a folder: what it was asked, where it is, what it has measured.

runs/TASK/NAME/config.json      configuration, length, store
               metrics.jsonl    one line of numbers at a time; TensorBoard events beside it
               checkpoints/     step-00010000/ ..., links `last` and `best`
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddp_cli.config import PolicyConfig, TrainConfig, read_json
from ddp_cli.core.checkpoint import Meta, checkpoints, load_train_state
from ddp_cli.core.training import Progress, Trainer, keep_freed_memory, planned_steps, train
from ddp_cli.data.store import Store
from ddp_cli.errors import CheckpointError, ConfigError, DataError, DdpError
from ddp_cli.tasks import task_name

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """A run that is ready to train. `rate` is the measured steps/s, 0 where none was needed."""

    folder: Path
    trainer: Trainer
    meta: Meta
    rate: float = 0.0


def create_run(folder: Path, config: TrainConfig, store: Store, device: torch.device) -> Run:
    """A new run in `folder`, which must not exist; its length in steps is fixed here."""
    if folder.exists():
        raise DdpError(f"'{folder}' exists.", "Add --resume to go on with it, or choose another --name.")
    keep_freed_memory()
    total, rate = planned_steps(config, store, device)
    trainer = Trainer(config, store, device)
    trainer.total = total
    folder.mkdir(parents=True)
    content = {
        "format": FORMAT,
        "train": config.model_dump(mode="json"),
        "total_steps": total,
        "data": str(store.path.absolute()),
        "store": store_identity(store),
    }
    partial = folder / ".config.json.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(folder / "config.json")
    return Run(folder, trainer, _meta(trainer, store), rate)


def reopen_run(folder: Path, device: torch.device, warn: Callable[[str], None]) -> Run:
    """The run in `folder`, at its newest whole checkpoint; damaged ones are passed over with a warning."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no run in '{folder}'.", "Start one without --resume.")
    content = read_json(folder / "config.json")
    try:
        policy, train_values = content["train"].pop("policy"), content["train"]
        config = TrainConfig(policy=PolicyConfig(**policy), **train_values)
        store, identity, total = Store(Path(content["data"])), content["store"], int(content["total_steps"])
    except (KeyError, TypeError, ConfigError) as e:
        raise CheckpointError(f"'{folder / 'config.json'}' is damaged: {e}.", "Start a new run.") from e
    if store_identity(store) != identity:
        raise DataError(
            f"'{store.path}' is not the store that this run began with.", "Restore that one, or start a new run."
        )
    keep_freed_memory()
    trainer = Trainer(config, store, device)
    trainer.total = total
    for path in reversed(checkpoints(folder)):
        try:
            trainer.load_state(load_train_state(path))
            break
        except CheckpointError as e:
            warn(f"{e.message} Trying the one before.")
    else:
        warn(f"'{folder}' has no checkpoint yet: beginning at step 0")
    return Run(folder, trainer, _meta(trainer, store))


def go(run: Run, report: Callable[[Progress], None], should_stop: Callable[[], bool]) -> Path | None:
    """Trains to the end of `run`, or until `should_stop()`; returns its last checkpoint, None before any."""
    from torch.utils.tensorboard import SummaryWriter

    began = time.time()
    writer = SummaryWriter(str(run.folder), purge_step=run.trainer.step_number)
    _forget(run.folder / "metrics.jsonl", run.trainer.step_number)
    with (run.folder / "metrics.jsonl").open("a") as metrics:

        def log(numbers: dict[str, float]) -> None:
            metrics.write(json.dumps({**numbers, "seconds": round(time.time() - began, 3)}) + "\n")
            metrics.flush()
            for key, value in numbers.items():
                if key != "step":
                    writer.add_scalar(key, value, int(numbers["step"]))

        try:
            return train(run.trainer, run.folder, run.meta, report, log, should_stop)
        finally:
            writer.close()


def _forget(metrics: Path, step: int) -> None:
    """Drops the numbers behind `step`: the run was interrupted there and will write them again."""
    if metrics.exists():
        lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
        metrics.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))


def newest_run(runs: Path, task: str) -> Path:
    """The run of `task` (a name, or a file that describes it) that was begun or continued last."""
    name = task_name(task)
    found = [p for p in (runs / name).glob("*") if (p / "config.json").is_file()]
    if not found:
        raise CheckpointError(f"no run of the task '{name}' in '{runs}/'.", f"Start one: `ddp train --task {task}`.")

    def touched(run: Path) -> float:
        return max(p.stat().st_mtime for p in (run / "config.json", run / "metrics.jsonl") if p.exists())

    return max(found, key=touched)


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ConfigError(f"no device '{name}' here.", "Valid: auto, cpu, and what `ddp doctor` lists.") from e
    return device


def store_identity(store: Store) -> dict[str, Any]:
    """What makes a store the same: its source's hash and how it was converted."""
    source = store.attrs["source"]
    return {
        "sha256": source["sha256"],
        "demos": len(source["demos"]),
        "steps": int(store.episode_ends[-1]),
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
