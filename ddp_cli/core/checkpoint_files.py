"""The files of a checkpoint, see checkpoint.py, what marks a run, and its links: all are recognized without torch."""

from __future__ import annotations

from pathlib import Path

CONFIG, MODEL, TRAIN_STATE = "config.json", "model.safetensors", "train_state.pt"
LINKS = ("last", "best")
"""Of a run, beside its checkpoints. On a file system without symbolic links they are files that name a checkpoint."""


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a training run."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def follow_link(path: Path) -> Path:
    """The checkpoint that `path` names, if it is a link of a run; otherwise `path`."""
    if path.name in LINKS and path.is_file():
        return path.with_name(Path(path.read_text(errors="replace").strip()).name or path.name)
    return path
