"""How often a run is checkpointed, which checkpoints are kept, and which is `best`."""

from __future__ import annotations

import math
from pathlib import Path

from ddp_cli.checkpoint_files import checkpoint_path, checkpoint_step, list_checkpoints
from ddp_cli.disk import remove_folder, replace_link
from ddp_cli.train_config import TrainConfig


def prune_checkpoints(run: Path, every: int, keep: int, always: set[int]) -> None:
    """Remove all checkpoints but the newest `keep` at multiples of `every` steps and those of the steps `always`."""
    checkpoints = list_checkpoints(run)
    periodic = [p for p in checkpoints if checkpoint_step(p) % every == 0]
    steps_to_keep = always | {checkpoint_step(p) for p in periodic[-keep:]}
    for path in checkpoints:
        if checkpoint_step(path) not in steps_to_keep:
            remove_folder(path)


def link_best_checkpoint(run: Path, step: int, success_rates: dict[int, float]) -> int:
    """Link `best` to the checkpoint with the highest success rate, by default that of `step`; returns its step."""
    best = step
    available = {s: rate for s, rate in success_rates.items() if checkpoint_path(run, s).is_dir()}
    if available:
        best = max(available, key=lambda s: (available[s], s))  # the later of equals
    replace_link(run / "checkpoints" / "best", checkpoint_path(run, best))
    return best


def checkpoint_interval(config: TrainConfig, total: int) -> int:
    """Steps between periodic checkpoints: as configured, as often as evaluations, or ten in a run."""
    return config.checkpoint_every or config.eval_every or math.ceil(total / 10)
