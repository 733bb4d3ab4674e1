"""The folder of a training run: how it is created, locked and read.

runs/TASK/NAME/config.json      configuration, length in steps, path and identity of the store
               metrics.jsonl    metrics, one JSON object per line; TensorBoard events beside it
               checkpoints/     step-00010000/ ..., links `last` and `best`
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from ddp_cli.checkpoint_files import checkpoint_path
from ddp_cli.core.checkpoint import Meta, save_checkpoint
from ddp_cli.data.store import Store
from ddp_cli.disk import atomic_file, remove, remove_leftovers
from ddp_cli.errors import ConfigError, DataError, DdpError
from ddp_cli.json_file import read_json
from ddp_cli.locks import Lock, acquire_lock, make_folder, read_holder, remove_empty_folders
from ddp_cli.task_file import task_from_json
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.resume_command import resume_command
from ddp_cli.training.run_config import FORMAT, RunConfig, check_is_run, parse_run_config
from ddp_cli.training.trainer import Trainer

INCOMPLETE_RUN = {".lock", "checkpoints", ".config.json.partial", ".config.json.lock"}
"""What an interruption leaves of a run whose `config.json` has not been written."""


@dataclass(frozen=True)
class NewRunFolder:
    """A locked folder for a new run; `config.json`, which `write` writes last, makes it a run."""

    path: Path
    lock: Lock
    created: list[Path]
    """Folders above it that did not exist."""

    def write(self, trainer: Trainer, meta: Meta, store: Store, init_from: Path | None, command: str = "") -> None:
        """A run that starts from the weights of `init_from` gets a checkpoint at step 0, so that it can be resumed
        without the other run. `command`: the one that started the run, empty if there was none.
        """
        if init_from:
            content: Meta = {**meta, "step": 0}
            path = checkpoint_path(self.path, 0)
            save_checkpoint(path, trainer.config.policy, trainer.ema_weights(), content, trainer.state())
        config = {
            "format": FORMAT,
            "id": uuid.uuid4().hex[:8],
            "train": trainer.config.model_dump(mode="json"),
            "total_steps": trainer.total,
            "data": str(store.path.absolute()),
            "store": meta["store"],
            "command": command,
            **({"init_from": str(init_from)} if init_from else {}),
        }
        _write_config(self.path, config)

    def remove(self) -> None:
        """Remove the folder, after an error."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.release()
        remove_empty_folders(self.created)


def _write_config(folder: Path, content: dict[str, Any]) -> None:
    with atomic_file(folder / "config.json") as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def default_run_name() -> str:
    """The name of a run that is not given one: the date and time at which it starts."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def create_run_folder(folder: Path, numbered: bool = False) -> NewRunFolder:
    """Create and lock the folder of a new run. What an interruption left of a run without `config.json` is removed.

    If there is a run in `folder`, or another process is starting one there: DdpError, or with `numbered`, the first
    free name of NAME-2, NAME-3, ... is used instead.
    """
    path, number = folder, 1
    while True:
        try:
            return _create_run_folder(path)
        except DdpError:
            if not numbered:
                raise
        number += 1
        path = folder.with_name(f"{folder.name}-{number}")


def _create_run_folder(folder: Path) -> NewRunFolder:
    while True:
        created = make_folder(folder.parent)
        try:
            folder.mkdir()
        except FileExistsError:
            _check_incomplete(folder)
        except FileNotFoundError:  # another process removed the empty folder above it
            continue
        try:
            lock = lock_run(folder)
        except FileNotFoundError:  # another process removed its folder
            continue
        if lock.is_current():
            break
        lock.release()
    try:
        _check_incomplete(folder)  # another process may have started a run before the folder was locked
    except DdpError:
        lock.release()
        raise
    for name in INCOMPLETE_RUN - {".lock"}:
        remove(folder / name)
    return NewRunFolder(folder, lock, created)


def _check_incomplete(folder: Path) -> None:
    """DdpError if there is a run or anything else in `folder`."""
    if not folder.is_dir() or any(p.name not in INCOMPLETE_RUN for p in folder.iterdir()):
        raise DdpError(f"'{folder}' already exists.", "Add --resume to continue it, or choose another --name.")


def open_run_folder(folder: Path) -> Lock:
    """Lock an existing run and remove what an interrupted process left of its checkpoints."""
    check_is_run(folder)
    lock = lock_run(folder)
    remove_leftovers(folder / "checkpoints")
    return lock


def lock_run(folder: Path) -> Lock:
    """Lock a run until `release()` or the end of this process; DdpError if another process is training it."""
    path = folder / ".lock"
    try:
        return acquire_lock(path, blocking=False)
    except BlockingIOError as e:
        raise DdpError(
            f"another process is training '{folder}'.", f"Wait for it, or stop it first. It is {read_holder(path)}."
        ) from e


def read_run_config(folder: Path, data: Path | None = None) -> RunConfig:
    """Read a run's `config.json`, and check its store.

    CheckpointError if it is missing or damaged, DataError if its store is missing or has changed.
    `data` is the path of the store, if it was moved.
    """
    config = parse_run_config(folder)
    if data is None and not config.store.exists():
        raise DataError(
            f"the store of '{folder}' is not at '{config.store}' any more.",
            f"If it was moved, resume with --data: `{resume_command(folder, '--data', 'STORE.zarr')}`.",
        )
    store = Store(data or config.store)
    differences = _find_differences(config.identity, store_identity(store))
    if differences:
        raise DataError(
            f"'{store.path}' is not the store that this run was started with: {', '.join(differences)}.",
            "Name that store with --data, or start a new run.",
        )
    return replace(config, store=store.path)


def write_store_path(folder: Path, path: Path) -> None:
    """Record in a run's `config.json` that its store is now at `path`."""
    _write_config(folder, read_json(folder / "config.json") | {"data": str(path.absolute())})


IDENTITY_NAMES = {
    "sha256": "the recording", "demos": "the number of demonstrations", "steps": "the number of steps",
    "actions_sha256": "the content of the actions", "observations_sha256": "the content of the observations",
    "task": "the task", "render": "the render profile", "action": "the action convention",
    "versions": "the simulator versions",
    "observations": "the copied observations",
}  # fmt: skip


def _find_differences(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """What differs between two identities of stores."""
    differences = []
    for key, value in actual.items():
        # Runs of older versions do not know which observations were recorded, nor their hash.
        before = expected.get(key, value if key in ("observations", "observations_sha256") else None)
        # Earlier versions described tasks in another form.
        is_same_task = key == "task" and before is not None and task_from_json(before) == task_from_json(value)
        if before != value and not is_same_task:
            values = f" ({value} instead of {before})" if isinstance(value, int) or key == "render" else ""
            differences.append(f"{IDENTITY_NAMES[key]} differs{values}")
    return differences


def store_identity(store: Store) -> dict[str, Any]:
    """What identifies the content of a store: its source, how it was converted, and hashes of its content."""
    source = store.attrs["source"]
    return {
        "sha256": source["sha256"],
        "demos": len(source["demos"]),
        "steps": int(store.episode_ends[-1]),
        "actions_sha256": store.content_hash(),
        "observations_sha256": store.observations_hash(),
        "observations": source.get("observations", []),
        **{k: store.attrs[k] for k in ("task", "render", "action", "versions")},
    }


def checkpoint_meta(config: TrainConfig, store: Store) -> Meta:
    """What every checkpoint of a run records about its training and its data."""
    return {
        "train": config.model_dump(mode="json", exclude={"policy", "cache_dir"}),
        "render": store.attrs["render"],
        "action": store.attrs["action"],
        "store": store_identity(store),
        "env_args": store.attrs["env_args"],
        "action_range": _action_range(config, store),
    }


def _action_range(config: TrainConfig, store: Store) -> dict[str, JsonValue] | None:
    """Lowest and highest values of the actions in the store, (Da,) each; None where the parts of an action state all
    limits.
    """
    if all(part.low and part.high for part in config.policy.action_parts):
        return None
    actions = store.read("action")
    return {"low": actions.min(0).tolist(), "high": actions.max(0).tolist()}


def find_training_store(checkpoint: Path) -> Path | None:
    """The store that the run of `checkpoint` was trained on, None if it cannot be found."""
    try:
        path = Path(read_json(checkpoint.parents[1] / "config.json")["data"])
    except (ConfigError, KeyError, TypeError, IndexError):
        return None
    return path if path.exists() else None
