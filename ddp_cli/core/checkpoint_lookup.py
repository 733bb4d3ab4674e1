"""The run and the checkpoint that a command uses: those that are named, or the newest run and its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddp_cli.checkpoint_files import CONFIG, best_checkpoint, follow_link, list_checkpoints
from ddp_cli.core.checkpoint import load_meta
from ddp_cli.errors import CheckpointError
from ddp_cli.task_file import check_same_task, check_task_of_policy, task_from_json, task_name


def newest_run(runs: Path, task: str | None = None, require_checkpoint: bool = False) -> Path:
    """The run that was started, resumed or checkpointed last.

    `task` (a name, or the file of a task) restricts the search to its runs; with `require_checkpoint` only runs that
    have a checkpoint count. CheckpointError if there is none.
    """
    name = task_name(task) if task else "*"
    folders = runs.glob(f"{name}/*")
    candidates = [run for run in folders if (best_checkpoint(run) if require_checkpoint else (run / CONFIG).exists())]
    if not candidates:
        kind = "trained run" if require_checkpoint else "run"
        of_task = f" of the task '{name}'" if task else ""
        raise CheckpointError(f"no {kind}{of_task} in '{runs}/'.", f"Start one: `ddp train --task {task or 'square'}`.")

    def last_change(run: Path) -> float:
        paths = [run / name for name in (CONFIG, "metrics.jsonl", "checkpoints/last")]
        paths += list_checkpoints(run)
        return max(path.stat().st_mtime for path in paths if path.exists())

    return max(candidates, key=last_change)


def resolve_checkpoint(path: Path | None, runs: Path, task: str | None = None) -> Path:
    """The checkpoint folder that `path` names: a checkpoint, a run (its best), or None (the best of the newest run).

    ConfigError if the checkpoint is one of another task than `task`. Without `path`, a name is only that of the folder
    in `runs`.
    """
    folder = newest_run(runs, task, require_checkpoint=True) if path is None else path
    best = best_checkpoint(folder)
    folder = follow_link(best).resolve() if best else follow_link(folder)
    meta: dict[str, Any] = load_meta(folder)
    if task:
        check = check_same_task if path is None else check_task_of_policy
        check(task_from_json(meta["policy"]["task"], f"'{folder}'"), task, folder)
    return folder
