"""Episodes in the simulator while a policy is trained: what `ddp train --eval-every` measures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_cli import console
from ddp_cli.errors import DdpError

if TYPE_CHECKING:
    from ddp_cli.training.run import Run


class _StoppedError(Exception):
    pass


def _words(e: Exception) -> str:
    return e.message if isinstance(e, DdpError) else f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"


def scorer(run: Run, device: str, stopped: Callable[[], bool]) -> Callable[[Path], float | None]:
    """A function that runs `eval_episodes` episodes of a checkpoint and returns how many succeeded, of 1.

    It films the first of them, and returns None where the simulator fails or the person wants to stop.
    """
    from ddp_cli.choices import FIRST_SEED
    from ddp_cli.evaluation.evaluation import evaluate, record_in_subprocess
    from ddp_cli.evaluation.report import write_report
    from ddp_cli.inference.agent import load_agent
    from ddp_cli.parallel import default_workers

    # On a GPU every process takes memory beside the training.
    workers = max(2, default_workers() if device == "cpu" else min(4, default_workers()))
    config, seed = run.trainer.config, FIRST_SEED["training"]
    task, render = config.policy.task, str(run.meta["render"])

    def look(_result: object) -> None:
        if stopped():
            raise _StoppedError

    def rollouts(checkpoint: Path) -> float | None:
        agent = functools.partial(load_agent, checkpoint, device, None, None)
        seeds = range(seed, seed + config.eval_episodes)
        try:
            # Never in this process: whatever happens to the simulator, training goes on.
            result = evaluate(agent, task, render, seeds, workers, look)
        except _StoppedError:
            return None
        except Exception as e:  # noqa: BLE001 - a worker's error can be of any kind
            console.warn(f"{checkpoint.name} was not evaluated: {_words(e)}")
            return None
        report = {"checkpoint": str(checkpoint), "task": task.name, "first_seed": seed, **result.to_json()}
        write_report(run.folder / "eval" / f"{checkpoint.name}-training.json", report)
        low, high = result.interval
        found = f"{result.successes} of {len(seeds)} succeeded ({low:.0%} to {high:.0%})"
        console.note(f"{checkpoint.name}: {found}")
        try:
            record_in_subprocess(agent, task, render, seed, run.folder / "videos" / f"{checkpoint.name}.mp4")
        except Exception as e:  # noqa: BLE001
            console.warn(f"{checkpoint.name} was not filmed: {_words(e)}")
        return result.success_rate

    return rollouts
