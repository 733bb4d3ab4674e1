"""The folder of a training run: how it is created, locked and read.

runs/TASK/NAME/config.json      configuration, length in steps, path and identity of the store
               metrics.jsonl    metrics, one JSON object per line; TensorBoard events beside it
               checkpoints/     step-00010000/ ..., links `last` and `best`
"""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli.config import PolicyConfig, TrainConfig, read_json
from ddp_cli.core.checkpoint import Meta, checkpoint_path, save_checkpoint
from ddp_cli.data.store import Store
from ddp_cli.disk import acquire_lock, atomic_file, remove_leftovers, replace_link
from ddp_cli.errors import CheckpointError, ConfigError, DataError, DdpError
from ddp_cli.training.trainer import Trainer

if TYPE_CHECKING:
    from filelock import BaseFileLock

FORMAT = 1
INCOMPLETE_RUN = {".lock", "checkpoints", ".config.json.partial"}
"""What an interruption leaves of a run whose `config.json` has not been written."""


@dataclass(frozen=True)
class RunConfig:
    """Content of a run's `config.json`."""

    train: TrainConfig
    store: Path
    total_steps: int


def check_new_run(folder: Path) -> None:
    """DdpError if `folder` exists; an incomplete run, left by an interruption, is removed."""
    if not folder.exists():
        return
    if (folder / "config.json").exists() or any(p.name not in INCOMPLETE_RUN for p in folder.iterdir()):
        raise DdpError(f"'{folder}' already exists.", "Add --resume to continue it, or choose another --name.")
    shutil.rmtree(folder)


def create_run_folder(folder: Path, trainer: Trainer, meta: Meta, store: Store, init_from: Path | None) -> BaseFileLock:
    """Create the folder and lock it; `config.json`, written last, makes it a run. After an error it is removed.

    A run that starts from the weights of `init_from` gets a checkpoint at step 0, so that it can be resumed without
    the other run.
    """
    folder.mkdir(parents=True)
    try:
        lock = lock_run(folder)
        if init_from:
            content: Meta = {**meta, "step": 0, "init_from": str(init_from)}
            path = checkpoint_path(folder, 0)
            save_checkpoint(path, trainer.config.policy, trainer.ema_weights(), content, trainer.state())
        config = {
            "format": FORMAT,
            "id": uuid.uuid4().hex[:8],
            "train": trainer.config.model_dump(mode="json"),
            "total_steps": trainer.total,
            "data": str(store.path.absolute()),
            "store": store_identity(store),
        }
        with atomic_file(folder / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return lock


def open_run_folder(folder: Path) -> BaseFileLock:
    """Lock an existing run and remove what an interrupted process left of its checkpoints."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no run in '{folder}'.", "Start one without --resume.")
    lock = lock_run(folder)
    remove_leftovers(folder / "checkpoints")
    return lock


def lock_run(folder: Path) -> BaseFileLock:
    """Lock a run until `release()` or the end of this process; DdpError if another process is training it."""
    try:
        return acquire_lock(folder / ".lock", blocking=False)
    except BlockingIOError as e:
        raise DdpError(f"another process is training '{folder}'.", "Wait for it, or stop it first.") from e


def read_run_config(folder: Path) -> RunConfig:
    """Read a run's `config.json`; CheckpointError if it is damaged, DataError if its store has changed."""
    content = read_json(folder / "config.json")
    try:
        if content["format"] != FORMAT:
            raise ConfigError(f"format {content['format']}, this version of ddp reads format {FORMAT}")
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
            f"'{store.path}' is not the store that this run was started with.",
            "Restore that store, or start a new run.",
        )
    return RunConfig(config, path, total)


def store_identity(store: Store) -> dict[str, Any]:
    """What identifies the content of a store: its source, how it was converted, and the hash of its actions."""
    source = store.attrs["source"]
    return {
        "sha256": source["sha256"],
        "demos": len(source["demos"]),
        "steps": int(store.episode_ends[-1]),
        "actions_sha256": store.content_hash(),
        **{k: store.attrs[k] for k in ("task", "render", "action", "versions")},
    }


def checkpoint_meta(config: TrainConfig, store: Store) -> Meta:
    """What every checkpoint of a run records about its training and its data."""
    return {
        "train": config.model_dump(mode="json", exclude={"policy"}),
        "render": store.attrs["render"],
        "action": store.attrs["action"],
        "store": store_identity(store),
        "env_args": store.attrs["env_args"],
    }


def find_training_store(checkpoint: Path) -> Path | None:
    """The store that the run of `checkpoint` was trained on, None if it cannot be found."""
    try:
        path = Path(read_json(checkpoint.parents[1] / "config.json")["data"])
    except (ConfigError, KeyError, TypeError, IndexError):
        return None
    return path if path.exists() else None


def link_best_checkpoint(run: Path, step: int, success_rates: dict[int, float]) -> int:
    """Link `best` to the checkpoint with the highest success rate, by default that of `step`; returns its step."""
    best = step
    available = {s: rate for s, rate in success_rates.items() if checkpoint_path(run, s).is_dir()}
    if available:
        best = max(available, key=lambda s: (available[s], s))  # the later of equals
    replace_link(run / "checkpoints" / "best", checkpoint_path(run, best))
    return best
