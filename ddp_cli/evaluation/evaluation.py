"""Many episodes over several processes, and what they say about a policy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddp_cli.errors import WorkerError
from ddp_cli.evaluation.rollout import Agent, EpisodeResult, run_episode
from ddp_cli.evaluation.statistics import wilson
from ddp_cli.parallel import FailedItem, fault_tolerant_map, ordered_map
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task


@dataclass(frozen=True)
class Evaluation:
    """Results of episodes that differ in nothing but their seed.

    `lost` are seeds whose episode could not be run, because the process died under it every time. They
    count neither as success nor as failure.
    """

    episodes: list[EpisodeResult]
    lost: list[int] = field(default_factory=list)

    @property
    def successes(self) -> int:
        return sum(e.success for e in self.episodes)

    @property
    def success_rate(self) -> float:
        return self.successes / len(self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, len(self.episodes))

    @property
    def held_rate(self) -> float:
        return sum(e.held for e in self.episodes) / len(self.episodes)

    @property
    def mean_steps(self) -> float:
        """Mean steps to success over the successful episodes; nan without any."""
        steps = [e.steps for e in self.episodes if e.success]
        return sum(steps) / len(steps) if steps else math.nan

    @property
    def chunk_ms(self) -> float:
        """Median over episodes of the time per action chunk [ms]."""
        times = sorted(e.chunk_ms for e in self.episodes)
        return times[len(times) // 2]

    def to_json(self) -> dict[str, Any]:
        """Plain values: the summary and every episode."""
        return {
            "success_rate": self.success_rate,
            "interval_95": list(self.interval),
            "successes": self.successes,
            "held_rate": self.held_rate,
            "mean_steps": None if math.isnan(self.mean_steps) else self.mean_steps,
            "chunk_ms": self.chunk_ms,
            "lost": self.lost,
            "episodes": [asdict(e) for e in self.episodes],
        }


def evaluate(
    make_agent: Callable[[], Agent],
    task: Task,
    render: str,
    seeds: Sequence[int],
    workers: int,
    progress: Callable[[EpisodeResult], None],
    half_width: float = 0.0,
) -> Evaluation:
    """Runs an episode from every seed; the results do not depend on the number of workers, or on their deaths.

    `make_agent` must be picklable; it runs once in every process. With one worker that is this process,
    with more none of them is. With `half_width` it ends as soon as the interval is that close on both
    sides (ten episodes at least): looked at in the order of the seeds, so that is no matter of workers either.
    """
    runner = functools.partial(_runner, make_agent, task, render)
    done = Evaluation([])
    with closing(fault_tolerant_map(runner, seeds, workers)) as episodes:
        for result in episodes:
            if isinstance(result, FailedItem):
                done.lost.append(result.item)
                if not done.episodes and len(done.lost) == min(3, len(seeds)):
                    raise WorkerError(
                        "a worker process died under every episode (killed, or out of memory).",
                        "Run again with fewer --workers.",
                    )
                continue
            done.episodes.append(result)
            progress(result)
            low, high = done.interval
            if len(done.episodes) >= 10 and (high - low) / 2 <= half_width:
                break
    return done


def _runner(make_agent: Callable[[], Agent], task: Task, render: str) -> Callable[[int], EpisodeResult]:
    agent = make_agent()
    return functools.partial(run_episode, Simulator(task, render, agent.actions), agent)


def record_in_subprocess(make_agent: Callable[[], Agent], task: Task, render: str, seed: int, path: Path) -> None:
    """Records the episode `seed` at half size, in a process of its own."""
    with closing(ordered_map(functools.partial(_recorder, make_agent, task, render, path), [seed], 2)) as done:
        list(done)


def _recorder(make_agent: Callable[[], Agent], task: Task, render: str, path: Path) -> Callable[[int], EpisodeResult]:
    from ddp_cli.evaluation.filming import FRAME_SIZE, record

    agent = make_agent()
    sim = Simulator(task, render, agent.actions)
    return lambda seed: record(sim, agent, seed, path, FRAME_SIZE // 2)
