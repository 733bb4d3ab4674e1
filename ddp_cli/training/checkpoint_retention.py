"""Which checkpoints of a run are kept, and which are deleted."""

from __future__ import annotations

from pathlib import Path

from ddp_cli.core.checkpoint import checkpoint_step, list_checkpoints
from ddp_cli.disk import remove_folder


def prune_checkpoints(run: Path, every: int, keep: int, always: set[int]) -> None:
    """Remove all checkpoints but the newest `keep` at multiples of `every` steps and those of the steps `always`."""
    checkpoints = list_checkpoints(run)
    periodic = [p for p in checkpoints if checkpoint_step(p) % every == 0]
    steps_to_keep = always | {checkpoint_step(p) for p in periodic[-keep:]}
    for path in checkpoints:
        if checkpoint_step(path) not in steps_to_keep:
            remove_folder(path)
