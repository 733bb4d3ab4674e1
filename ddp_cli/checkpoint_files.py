"""Names of checkpoints and of their files (see core/checkpoint.py), what marks a run, and its links: without torch."""

from __future__ import annotations

from pathlib import Path

CONFIG, MODEL, TRAIN_STATE = "config.json", "model.safetensors", "train_state.pt"
LINKS = ("last", "best")
"""Of a run, beside its checkpoints. On a file system without symbolic links they are files that name a checkpoint."""


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a training run."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def checkpoint_path(run: Path, step: int) -> Path:
    """The folder of a run's checkpoint at training step `step`."""
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoint_step(path: Path) -> int:
    """The training step in a checkpoint folder's name."""
    return int(path.name.removeprefix("step-"))


def follow_link(path: Path) -> Path:
    """The checkpoint that `path` names at the moment, if it is a link of a run; otherwise `path`."""
    if path.name in LINKS and path.is_symlink() and path.is_dir():
        return path.parent / path.readlink()
    if path.name in LINKS and path.is_file():
        return path.with_name(Path(path.read_text(errors="replace").strip()).name or path.name)
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted(p for p in folders if p.is_dir() and not p.is_symlink() and p.name[5:].isdigit())


def best_checkpoint(run: Path) -> Path | None:
    """The best checkpoint of a run, or the newest one if the best was removed; None if nothing was trained yet."""
    best = run / "checkpoints" / "best"
    trained = [path for path in list_checkpoints(run) if checkpoint_step(path) > 0]
    return best if follow_link(best).is_dir() else next(reversed(trained), None)
