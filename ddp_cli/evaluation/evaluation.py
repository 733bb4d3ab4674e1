"""Evaluation of a policy over many episodes, in parallel."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_cli.errors import WorkerError
from ddp_cli.evaluation.rollout import Agent, Environment, EpisodeResult, run_episode
from ddp_cli.evaluation.statistics import mean_interval, wilson_interval
from ddp_cli.parallel import FailedItem, Workers, fault_tolerant_map, ordered_map
from ddp_cli.sim.gymnasium_env import GymnasiumEnv, GymnasiumSettings
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task

MIN_EPISODES_TO_STOP = 10  # of an evaluation that stops when its interval is narrow
MAX_CRASHES_WITHOUT_RESULT = 3


@dataclass(frozen=True)
class Evaluation:
    """Results of episodes that differ only in their seed.

    `crashed_seeds`: seeds whose worker process crashed on every attempt. They count neither as success nor as failure.
    """

    episodes: list[EpisodeResult]
    crashed_seeds: list[int] = field(default_factory=list)

    @property
    def successes(self) -> int:
        """Number of successful episodes."""
        return sum(e.success for e in self.episodes)

    @property
    def success_rate(self) -> float:
        """Fraction of successful episodes."""
        return self.successes / len(self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the success rate."""
        return wilson_interval(self.successes, len(self.episodes))

    @property
    def margin(self) -> float:
        """The longer side of the interval."""
        low, high = self.interval
        return max(self.success_rate - low, high - self.success_rate)

    @property
    def held_rate(self) -> float:
        """Fraction of episodes in which success held for 10 steps."""
        return sum(e.held for e in self.episodes) / len(self.episodes)

    @property
    def mean_steps(self) -> float:
        """Mean number of steps to success over the successful episodes; nan without any."""
        steps = [e.steps for e in self.episodes if e.success]
        return sum(steps) / len(steps) if steps else math.nan

    @property
    def chunk_ms(self) -> float:
        """Median over episodes of the mean time per action chunk [ms]."""
        return statistics.median(e.chunk_ms for e in self.episodes)

    @property
    def scores(self) -> list[float]:
        """Scores of the episodes; empty where only success counts."""
        return [e.score for e in self.episodes if e.score is not None]

    @property
    def mean_reward(self) -> float | None:
        """Mean sum of rewards of an episode; None without rewards."""
        rewards = [e.total_reward for e in self.episodes if e.total_reward is not None]
        return sum(rewards) / len(rewards) if rewards else None

    def to_json(self) -> dict[str, Any]:
        """Summary and all episodes, as values that JSON can represent."""
        scores = self.scores
        measured = {
            "score": sum(scores) / len(scores), "score_interval_95": mean_interval(scores),
            "total_reward": self.mean_reward,
        } if scores else {}  # fmt: skip
        return {
            "success_rate": self.success_rate,
            "interval_95": list(self.interval),
            "successes": self.successes,
            "held_rate": self.held_rate,
            "mean_steps": None if math.isnan(self.mean_steps) else self.mean_steps,
            "chunk_ms": self.chunk_ms,
            **measured,
            "lost": self.crashed_seeds,
            "episodes": [e.to_json() for e in self.episodes],
        }


def evaluate(
    make_agent: Callable[[], Agent],
    make_env: Callable[[Agent], Environment],
    seeds: Sequence[int],
    workers: Workers,
    on_episode: Callable[[EpisodeResult], None],
    max_margin: float = 0.0,
) -> Evaluation:
    """Run one episode per seed. Results do not depend on the number of workers; crashed workers are retried.

    `make_agent` and `make_env` must be picklable: they are called once in each worker process, or in this process if
    `workers` is 1.
    With `max_margin`, stop after the first episode (in the order of `seeds`, the tenth or later) at which the 95%
    interval extends at most this far to either side. WorkerError if the first three episodes all crash their worker.
    """
    make_runner = functools.partial(_make_episode_runner, make_agent, make_env)
    evaluation = Evaluation([])
    with closing(fault_tolerant_map(make_runner, seeds, workers)) as results:
        for result in results:
            if isinstance(result, FailedItem):
                evaluation.crashed_seeds.append(result.item)
                max_crashes = min(MAX_CRASHES_WITHOUT_RESULT, len(seeds))
                if not evaluation.episodes and len(evaluation.crashed_seeds) == max_crashes:
                    raise WorkerError(
                        "a worker process crashed in every episode (killed, or out of memory).",
                        "Run again with fewer --workers.",
                    )
                continue
            evaluation.episodes.append(result)
            on_episode(result)
            is_long_enough = len(evaluation.episodes) >= MIN_EPISODES_TO_STOP
            if is_long_enough and 0.0 < max_margin >= evaluation.margin:
                break
    return evaluation


def _make_episode_runner(
    make_agent: Callable[[], Agent], make_env: Callable[[Agent], Environment]
) -> Callable[[int], EpisodeResult]:
    agent = make_agent()
    return functools.partial(run_episode, make_env(agent), agent)


def make_simulator(task: Task, render: str, agent: Agent) -> Simulator:
    """The simulator of `task` for `agent`."""
    return Simulator(task, render, agent.actions)


def make_gymnasium_env(task: Task, settings: GymnasiumSettings, agent: Agent, film: bool = False) -> GymnasiumEnv:
    """A Gymnasium environment for `agent`, a policy of `task`. `film`: episodes will be filmed."""
    return GymnasiumEnv(task, agent.obs, settings, film)


def record_in_subprocess(make_agent: Callable[[], Agent], task: Task, render: str, seed: int, path: Path) -> None:
    """Record the episode `seed` at half size, in a process of its own."""
    make_recorder = functools.partial(_make_recorder, make_agent, task, render, path)
    with closing(ordered_map(make_recorder, [seed], workers=2)) as results:  # 1 would run it in this process
        list(results)


def _make_recorder(
    make_agent: Callable[[], Agent], task: Task, render: str, path: Path
) -> Callable[[int], EpisodeResult]:
    from ddp_cli.evaluation.filming import FRAME_SIZE, record_episode

    agent = make_agent()
    sim = Simulator(task, render, agent.actions)
    return lambda seed: record_episode(sim, agent, seed, path, FRAME_SIZE // 2)
