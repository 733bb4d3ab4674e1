"""Checkpoints: self-contained folders.

    config.json         format version, policy configuration, origin of the data, step
    model.safetensors   EMA weights and normalizer
    train_state.pt      raw weights, optimizer, EMA, step; only in checkpoints that training can resume from

A checkpoint is written under a temporary name, synced and renamed: a folder with its final name is complete.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ddp_cli.checkpoint_files import CONFIG, MODEL, TRAIN_STATE
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.disk import atomic_folder, file_hash
from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.policy_config import PolicyConfig

FORMAT = 2
READABLE_FORMATS = (1, 2)
"""Format 1 had no schema: a task of robosuite says what it observes."""
PUBLISHED_SUFFIXES = (".ckpt", ".pt", ".pth")
"""Of files that may be checkpoints of the published code."""

Meta = dict[str, JsonValue]

META_TYPES = {"policy": dict, "render": str, "action": dict, "store": dict, "versions": dict, "env_args": dict}
"""Types of what describes a policy, in config.json and in policy.json of an exported one, where it is not null."""


def save_checkpoint(
    folder: Path, config: PolicyConfig, weights: dict[str, Tensor], meta: Meta, train_state: dict[str, Any] | None
) -> None:
    """Write a checkpoint to `folder` atomically, replacing an older one; after an error nothing is left of it.

    `meta` is the rest of config.json. It may be that of an earlier checkpoint: its format, policy and hashes are not
    written.
    """
    with atomic_folder(folder) as partial:
        # As bytes: the libraries' own writers hide the system's error when the disk is full.
        (partial / MODEL).write_bytes(save({k: v.detach().cpu().contiguous() for k, v in weights.items()}))
        if train_state is not None:
            buffer = io.BytesIO()
            torch.save(train_state, buffer)
            (partial / TRAIN_STATE).write_bytes(buffer.getbuffer())
        hashes: dict[str, JsonValue] = {path.name: file_hash(path) for path in sorted(partial.iterdir())}
        inherited = {key: value for key, value in meta.items() if key not in ("format", "policy", "sha256")}
        content = {"format": FORMAT, "policy": config.model_dump(mode="json"), **inherited, "sha256": hashes}
        (partial / CONFIG).write_text(json.dumps(content, indent=2) + "\n")


def load_meta(folder: Path) -> Meta:
    """Read and check the content of `config.json`."""
    hint = "Name a checkpoint folder (runs/TASK/NAME/checkpoints/step-...), or train a policy with `ddp train`."
    check_not_file(folder)
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
    if version not in READABLE_FORMATS:
        raise CheckpointError(
            f"checkpoint '{folder}' has format {version}, this version of ddp reads format {FORMAT}.",
            "Install the version of ddp that wrote it.",
        )
    check_meta(meta, folder / CONFIG, hint)
    return dict(meta)


def check_meta(meta: Mapping[str, Any], path: Path, hint: str) -> None:
    """CheckpointError if a value of `meta`, the content of `path`, has another type than META_TYPES says."""
    store = meta.get("store")
    values = {key: meta.get(key) for key in META_TYPES}
    values |= {"store.versions": store.get("versions")} if isinstance(store, dict) else {}
    for key, value in values.items():
        expected = META_TYPES.get(key, dict)
        if value is not None and not isinstance(value, expected):
            raise CheckpointError(f"'{path}' is damaged: {key} is of type {type(value).__name__}.", hint)


def check_not_file(path: Path) -> None:
    """CheckpointError if `path` is a file; the hint says how to use it, if it belongs to a policy."""
    if not path.is_file():
        return
    if any((path.parent / name).is_file() for name in (MODEL, "policy.json")):
        hint = f"It belongs to a policy: name its folder, '{path.parent}'."
    elif path.suffix in PUBLISHED_SUFFIXES:
        hint = f"Import it, if it is a checkpoint of the published code: `ddp import {path} --out imported/`."
    else:
        hint = "Name a checkpoint folder, or train a policy with `ddp train`."
    raise CheckpointError(f"'{path}' is a file, not a checkpoint folder.", hint)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read the EMA weights and the normalizer, after checking their hash."""
    check_weights(folder, load_meta(folder))
    try:
        return load_file(folder / MODEL)
    except (SafetensorError, OSError) as e:
        cause = str(e).splitlines()[0]
        raise CheckpointError(f"'{folder / MODEL}' is damaged: {cause}", "Use another checkpoint.") from e


def check_weights(folder: Path, meta: Meta) -> None:
    """CheckpointError if the weights are not those whose hash is in `meta`, the content of `config.json`."""
    hashes = meta.get("sha256")
    expected = hashes.get(MODEL) if isinstance(hashes, dict) else None
    if expected is not None and file_hash(folder / MODEL) != expected:
        raise CheckpointError(
            f"'{folder / MODEL}' is damaged, or belongs to another checkpoint: its hash differs from the one in "
            f"{CONFIG}.",
            "Copy the whole folder again, or use another checkpoint.",
        )


def load_policy(folder: Path, device: torch.device | str = "cpu") -> tuple[DiffusionPolicy, Meta]:
    """Load the policy with its EMA weights, in eval mode, and the content of `config.json`."""
    meta = load_meta(folder)
    try:
        policy = DiffusionPolicy(PolicyConfig(**meta["policy"]))  # type: ignore[arg-type]
        policy.load_state_dict(load_weights(folder))
    except RuntimeError as e:
        cause = str(e).splitlines()[0]
        raise CheckpointError(f"'{folder / MODEL}' is damaged: {cause}", "Use another checkpoint.") from e
    except ConfigError as e:
        raise CheckpointError(f"'{folder / CONFIG}': {e.message}", "Install the version of ddp that wrote it.") from e
    return policy.to(device).eval(), meta


def load_train_state(folder: Path) -> dict[str, Any]:
    """Read what training needs to resume from `folder` (tensors and plain values only), after checking hashes."""
    path = folder / TRAIN_STATE
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint '{folder}' has no {TRAIN_STATE}: training cannot resume from it.", "Start a new run."
        )
    hashes = load_meta(folder).get("sha256")
    for name, expected in hashes.items() if isinstance(hashes, dict) else ():
        if not (folder / name).is_file() or file_hash(folder / name) != expected:
            raise CheckpointError(
                f"'{folder / name}' is damaged: its hash differs from the one in {CONFIG}.",
                "Remove this checkpoint folder to use the previous one.",
            )
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as e:  # a damaged zip raises many kinds
        raise CheckpointError(f"'{path}' is damaged.", "Remove this checkpoint folder to use the previous one.") from e
