"""Evaluation in the simulator during training, for `ddp train --eval-every`."""

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


def make_evaluator(run: Run, device: str, should_stop: Callable[[], bool]) -> Callable[[Path], float | None]:
    """A function that runs `eval_episodes` episodes with a checkpoint and returns the success rate.

    It writes a report and a video of the first episode into the run's folder. It returns None if the simulator fails,
    or if `should_stop()` becomes true.
    """
    from ddp_cli.evaluation.evaluation import evaluate, make_simulator, record_in_subprocess
    from ddp_cli.evaluation.report import write_report
    from ddp_cli.inference.agent import load_agent
    from ddp_cli.parallel import default_workers
    from ddp_cli.seeds import FIRST_SEED

    # On a GPU every worker takes memory in addition to the training. Two workers at least: with one, episodes would
    # run in this process, and a crash of the simulator would end the training.
    workers = max(2, default_workers() if device == "cpu" else min(4, default_workers()))
    config, seed = run.trainer.config, FIRST_SEED["training"]
    task, render = config.policy.task, str(run.meta["render"])

    def on_episode(_result: object) -> None:
        if should_stop():
            raise _StoppedError

    def evaluate_checkpoint(checkpoint: Path) -> float | None:
        make_agent = functools.partial(load_agent, checkpoint, device, None, None)
        seeds = range(seed, seed + config.eval_episodes)
        try:
            result = evaluate(make_agent, functools.partial(make_simulator, task, render), seeds, workers, on_episode)
        except _StoppedError:
            console.note(f"{checkpoint.name} was not evaluated: stopped; --resume evaluates it")
            return None
        except Exception as e:  # noqa: BLE001 - a worker's error can be of any kind
            console.warn(f"{checkpoint.name} was not evaluated: {_describe(e)}")
            return None
        report = {"checkpoint": str(checkpoint), "task": task.name, "first_seed": seed, **result.to_json()}
        write_report(run.folder / "eval" / f"{checkpoint.name}-training.json", report)
        low, high = result.interval
        console.note(f"{checkpoint.name}: {result.successes} of {len(seeds)} succeeded ({low:.0%} to {high:.0%})")
        if not task.schema.cameras:
            return result.success_rate
        try:
            record_in_subprocess(make_agent, task, render, seed, run.folder / "videos" / f"{checkpoint.name}.mp4")
        except Exception as e:  # noqa: BLE001
            console.warn(f"{checkpoint.name} was not filmed: {_describe(e)}")
        return result.success_rate

    return evaluate_checkpoint


def _describe(e: Exception) -> str:
    return e.message if isinstance(e, DdpError) else f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
