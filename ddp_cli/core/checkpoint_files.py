"""The files of a checkpoint, see checkpoint.py, and what marks a run: both are recognized without torch."""

from __future__ import annotations

from pathlib import Path

CONFIG, MODEL, TRAIN_STATE = "config.json", "model.safetensors", "train_state.pt"


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a training run."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()
