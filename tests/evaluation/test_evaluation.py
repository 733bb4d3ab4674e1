"""Many episodes: independent of the number of workers and of crashes."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ddp_cli.action_limits import ActionLimits
from ddp_cli.errors import DdpError
from ddp_cli.evaluation.evaluation import Evaluation, evaluate, make_simulator
from ddp_cli.evaluation.rollout import EpisodeResult
from ddp_cli.inference.agent import load_agent
from ddp_cli.robots import delta_parts
from ddp_cli.tasks import get_task

pytestmark = pytest.mark.slow


class RandomAgent:
    """Random actions, determined by the seed of the episode."""

    obs, actions, n_obs_steps, action_limits = "state", "delta", 2, ActionLimits.from_parts(delta_parts())

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, _history: Sequence) -> np.ndarray:
        return self.rng.uniform(-1, 1, (8, 7))


class IdleAgent(RandomAgent):
    """Zero actions."""

    def act(self, _history: Sequence) -> np.ndarray:
        return np.zeros((8, 7))


def crash() -> RandomAgent:
    os._exit(1)


SHORT_TASK = dataclasses.replace(get_task("lift"), horizon=21)


def test_results_do_not_depend_on_the_number_of_workers() -> None:
    def fields(evaluation: Evaluation) -> list[tuple]:
        return [(e.seed, e.success, e.held, e.steps) for e in evaluation.episodes]

    one, two = (
        evaluate(RandomAgent, functools.partial(make_simulator, SHORT_TASK, "fast"), range(5, 8), n, lambda _: None)
        for n in (1, 2)
    )
    assert fields(one) == fields(two)
    assert [e.seed for e in one.episodes] == [5, 6, 7]


def test_workers_that_always_crash_raise_an_error() -> None:
    with pytest.raises(DdpError, match="process crashed in every episode"):
        evaluate(crash, functools.partial(make_simulator, SHORT_TASK, "fast"), range(3), 2, lambda _: None)


def test_killing_a_worker_does_not_change_the_results(trained: Path) -> None:
    make_agent = functools.partial(load_agent, trained / "lift/tiny/checkpoints/best", "cpu", None, 1)
    task = dataclasses.replace(get_task("lift"), horizon=16)
    seeds = range(100_000, 100_005)

    def results(workers: int, on_episode: Callable[[EpisodeResult], None]) -> list[EpisodeResult]:
        evaluation = evaluate(make_agent, functools.partial(make_simulator, task, "fast"), seeds, workers, on_episode)
        assert evaluation.crashed_seeds == []
        return [dataclasses.replace(e, chunk_ms=0.0) for e in evaluation.episodes]

    killed = []

    def kill_worker(_result: EpisodeResult) -> None:
        if not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    expected = results(1, lambda _: None)
    assert [e.seed for e in expected] == list(seeds)
    assert results(2, kill_worker) == expected
    assert killed
    assert results(4, lambda _: None) == expected


def test_evaluation_stops_when_its_interval_is_narrow_on_each_side() -> None:
    task = dataclasses.replace(get_task("lift"), horizon=2)
    evaluation = evaluate(
        IdleAgent, functools.partial(make_simulator, task, "fast"), range(1, 100), 1, lambda _: None, max_margin=0.2
    )
    assert len(evaluation.episodes) == 16  # 0 of 16: 0% to 19.4%; 0 of 15: 0% to 20.4%
    assert evaluation.interval[1] <= 0.2


def test_summary_of_an_evaluation() -> None:
    episodes = [
        EpisodeResult(1, True, True, 40, 10.0),
        EpisodeResult(2, True, False, 60, 30.0),
        EpisodeResult(3, False, False, 400, 20.0),
    ]
    evaluation = Evaluation(episodes, [4])
    assert (evaluation.successes, evaluation.mean_steps, evaluation.chunk_ms) == (2, 50.0, 20.0)
    assert evaluation.success_rate == pytest.approx(2 / 3)
    assert evaluation.held_rate == pytest.approx(1 / 3)
    report = evaluation.to_json()
    assert [x["seed"] for x in report["episodes"]] == [1, 2, 3]
    assert report["lost"] == [4]
