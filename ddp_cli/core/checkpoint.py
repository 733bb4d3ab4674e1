"""Checkpoints: a folder that needs nothing else to be used.

    config.json         format version, policy configuration, where the data came from, step
    model.safetensors   EMA weights and normaliser
    train_state.pt      raw weights, optimiser, EMA, step; only where training can go on

Written under a temporary name, synced and renamed: a folder with its final name is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ddp_cli.config import PolicyConfig
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.disk import sync
from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.tasks import check_same_task, task_from_json, task_name

FORMAT = 1
CONFIG, MODEL, TRAIN_STATE = "config.json", "model.safetensors", "train_state.pt"

Meta = dict[str, JsonValue]


def save_checkpoint(
    folder: Path, config: PolicyConfig, weights: dict[str, Tensor], meta: Meta, train_state: dict[str, Any] | None
) -> None:
    """Writes `folder` in one piece, replacing an older one. On any failure nothing is left of it."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        # Through bytes: the libraries' own writers hide the system's error when the disk is full.
        (temporary / MODEL).write_bytes(save({k: v.detach().cpu().contiguous() for k, v in weights.items()}))
        if train_state is not None:
            buffer = io.BytesIO()
            torch.save(train_state, buffer)
            (temporary / TRAIN_STATE).write_bytes(buffer.getbuffer())
        hashes: dict[str, JsonValue] = {path.name: file_hash(path) for path in sorted(temporary.iterdir())}
        content = {"format": FORMAT, "policy": config.model_dump(mode="json"), **meta, "sha256": hashes}
        (temporary / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        remove_checkpoint(folder)
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_meta(folder: Path) -> Meta:
    """The checked content of `config.json`."""
    hint = "Name a checkpoint folder (runs/TASK/NAME/checkpoints/step-...), or train one with `ddp train`."
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder '{folder}'.", hint)
    for name in (CONFIG, MODEL):
        if not (folder / name).is_file():
            raise CheckpointError(f"checkpoint '{folder}' has no {name}.", hint)
    try:
        meta = json.loads((folder / CONFIG).read_text())
        version = meta["format"]
        meta["policy"]["task"]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"'{folder / CONFIG}' is damaged.", hint) from e
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint '{folder}' has format {version}, this ddp reads format {FORMAT}.",
            "Install the ddp that wrote it.",
        )
    return dict(meta)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """EMA weights and normaliser in `folder`."""
    try:
        return load_file(folder / MODEL)
    except (SafetensorError, OSError) as e:
        cause = str(e).splitlines()[0]
        raise CheckpointError(f"'{folder / MODEL}' is damaged: {cause}", "Use another checkpoint.") from e


def load_policy(folder: Path, device: torch.device | str = "cpu") -> tuple[DiffusionPolicy, Meta]:
    """The policy in `folder`, in eval mode, with EMA weights; and what `config.json` says."""
    meta = load_meta(folder)
    try:
        policy = DiffusionPolicy(PolicyConfig(**meta["policy"]))  # type: ignore[arg-type]
        policy.load_state_dict(load_weights(folder))
    except RuntimeError as e:
        cause = str(e).splitlines()[0]
        raise CheckpointError(f"'{folder / MODEL}' is damaged: {cause}", "Use another checkpoint.") from e
    except ConfigError as e:
        raise CheckpointError(f"'{folder / CONFIG}': {e.message}", "Install the ddp that wrote it.") from e
    return policy.to(device).eval(), meta


def load_train_state(folder: Path) -> dict[str, Any]:
    """What training needs to go on from `folder` (tensors and plain values only)."""
    path = folder / TRAIN_STATE
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint '{folder}' has no {TRAIN_STATE}: training cannot go on from it.", "Start a new run."
        )
    hashes = load_meta(folder).get("sha256")
    for name, known in hashes.items() if isinstance(hashes, dict) else ():
        if not (folder / name).is_file() or file_hash(folder / name) != known:
            raise CheckpointError(f"'{folder / name}' is not what was written.", "The checkpoint before will be used.")
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as e:  # a damaged zip raises many kinds
        raise CheckpointError(
            f"'{path}' is damaged.", "Remove this checkpoint folder: the one before will be used."
        ) from e


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(p for p in found if p.is_dir() and not p.is_symlink() and p.name[5:].isdigit())


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(path.name.removeprefix("step-"))


def prune(folder: Path, every: int, keep: int, always: set[int]) -> None:
    """Keeps the newest `keep` of the checkpoints at multiples of `every`, and those of the steps `always`."""
    found = checkpoints(folder.parent)
    regular = [p for p in found if step_of(p) % every == 0]
    kept = always | {step_of(p) for p in regular[-keep:]}
    for path in found:
        if step_of(path) not in kept:
            remove_checkpoint(path)


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint; an interruption leaves nothing that looks like a whole one."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_partial_checkpoints(run: Path) -> None:
    """Removes what an interrupted process left of checkpoints that it was writing or removing."""
    for pattern in (".*.partial", ".*.removed"):
        for path in (run / "checkpoints").glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def latest_run(runs: Path, task: str | None = None) -> Path:
    """The run with the newest checkpoint, of `task` (a name, or a file); CheckpointError when there is none."""
    name = task_name(task) if task else "*"
    found = [p for p in runs.glob(f"{name}/*") if (p / "checkpoints" / "last").exists()]
    if not found:
        what = f" of the task '{name}'" if task else ""
        raise CheckpointError(
            f"no trained run{what} in '{runs}/'.", f"Train one: `ddp train --task {task or 'square'}`."
        )
    return max(found, key=lambda p: (p / "checkpoints" / "last").resolve().stat().st_mtime)


def resolve_checkpoint(path: Path | None, runs: Path, task: str | None = None) -> Path:
    """A checkpoint folder for what the user named: a checkpoint, a run, or nothing (the newest run).

    ConfigError when `task` is a file that describes another task than the checkpoint's.
    """
    if path is None:
        path = latest_run(runs, task)
    if (path / "checkpoints" / "best").exists():
        path = (path / "checkpoints" / "best").resolve()
    meta: dict[str, Any] = load_meta(path)
    if task:
        check_same_task(task_from_json(meta["policy"]["task"], f"'{path}'"), task, path)
    return path


def update_link(link: Path, target: Path) -> None:
    """Makes `link` a relative symbolic link to `target`, atomically."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    if link.is_dir() and not link.is_symlink():  # a run that was copied with its links followed
        shutil.rmtree(link)
    temporary.replace(link)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
