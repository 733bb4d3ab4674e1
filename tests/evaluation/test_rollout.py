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

from ddp_cli.errors import DdpError
from ddp_cli.evaluation.evaluation import Evaluation, evaluate
from ddp_cli.evaluation.rollout import EpisodeResult, run_episode
from ddp_cli.evaluation.statistics import paired, wilson
from ddp_cli.inference.agent import load_agent
from ddp_cli.safety import Safety
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task
from ddp_cli.video.video import VideoWriter, read_video


class Drift:
    """Moves at random, decided by the seed of the episode."""

    obs = "state"
    actions = "delta"
    n_obs_steps = 2
    safety = Safety("delta")

    def __init__(self) -> None:
        self.seen: list[list[dict]] = []

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, history: Sequence) -> np.ndarray:
        self.seen.append(list(history))
        return self.rng.uniform(-1, 1, (8, 7))


SHORT = dataclasses.replace(get_task("lift"), horizon=21)


def test_the_agent_sees_the_last_observations_of_every_chunk() -> None:
    agent, sim = Drift(), Simulator(SHORT)
    positions: list[np.ndarray] = []
    result = run_episode(sim, agent, 3, lambda *_: positions.append(sim.low_dim(["robot0_eef_pos"])["robot0_eef_pos"]))
    sim.close()
    assert (result.steps, result.success, result.held) == (21, False, False)
    assert len(agent.seen) == 3  # 8 + 8 + 5 steps
    expected = [(0, 0), (7, 8), (15, 16)]
    for history, steps in zip(agent.seen, expected, strict=True):
        for frame, step in zip(history, steps, strict=True):
            np.testing.assert_array_equal(frame["robot0_eef_pos"], positions[step])


def test_success_ends_the_episode_once_it_has_held(lift_demos: Path) -> None:
    from ddp_cli.data.demo_file import DemoFile

    with DemoFile(lift_demos) as file:
        demo = file.read("demo_0")

    class Replay(Drift):
        def act(self, history: Sequence) -> np.ndarray:
            start = 8 * len(self.seen)
            super().act(history)
            return demo.actions[start : start + 8]

    sim = Simulator(get_task("lift"))
    result = run_episode(sim, Replay(), demo.seed)
    sim.close()
    assert result.success
    assert result.held
    assert result.steps == len(demo.actions) - 9  # the demo ends when success has held for 10 steps


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    def fields(e: Evaluation) -> list[tuple]:
        return [(r.seed, r.success, r.held, r.steps) for r in e.episodes]

    runs = [evaluate(Drift, SHORT, "fast", range(5, 8), n, lambda _: None) for n in (1, 2)]
    assert fields(runs[0]) == fields(runs[1])
    assert [r.seed for r in runs[0].episodes] == [5, 6, 7]


def _dies() -> Drift:
    import os

    os._exit(1)


def test_a_dead_process_is_an_error_not_a_hang() -> None:
    with pytest.raises(DdpError, match="process died"):
        evaluate(functools.partial(_dies), SHORT, "fast", range(3), 2, lambda _: None)


def test_an_episode_ends_when_actions_are_not_finite() -> None:
    class FailedItem(Drift):
        def act(self, history: Sequence) -> np.ndarray:
            return super().act(history) * (np.nan if len(self.seen) == 2 else 1.0)

    sim = Simulator(SHORT)
    with pytest.raises(DdpError, match="not finite.*start 12"):
        run_episode(sim, FailedItem(), 12)
    sim.close()


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (45, 50, (0.7864, 0.9565)), (1, 1, (0.2065, 1.0))],
)
def test_wilson_interval(successes: int, n: int, interval: tuple[float, float]) -> None:
    assert wilson(successes, n) == pytest.approx(interval, abs=5e-4)


def test_evaluation_summary() -> None:
    results = [
        EpisodeResult(1, True, True, 40, 10.0),
        EpisodeResult(2, True, False, 60, 30.0),
        EpisodeResult(3, False, False, 400, 20.0),
    ]
    e = Evaluation(results)
    assert (e.successes, e.mean_steps, e.chunk_ms) == (2, 50.0, 20.0)
    assert e.success_rate == pytest.approx(2 / 3)
    assert e.held_rate == pytest.approx(1 / 3)
    assert [x["seed"] for x in e.to_json()["episodes"]] == [1, 2, 3]


def test_video_comes_back_as_it_was_written(tmp_path: Path) -> None:
    frames = np.zeros((5, 64, 96, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, : 16 * (i + 1)] = (200, 60, 30)
    with VideoWriter(tmp_path / "v.mp4") as video:
        for frame in frames:
            video.add(frame)
    back = read_video(tmp_path / "v.mp4")
    assert back.shape == frames.shape
    assert np.abs(back.astype(float) - frames).mean() < 6


def test_an_interrupted_video_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "v.mp4") as video:
        video.add(np.zeros((64, 64, 3), np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DdpError, match=r"\.mp4"):
        VideoWriter(tmp_path / "v.txt")


def test_killing_a_worker_in_the_middle_changes_nothing(trained: Path) -> None:
    make_agent = functools.partial(load_agent, trained / "lift/tiny/checkpoints/best", "cpu", None, 1)
    task = dataclasses.replace(get_task("lift"), horizon=16)
    seeds = range(100_000, 100_005)

    def results(workers: int, progress: Callable[[EpisodeResult], None]) -> list[EpisodeResult]:
        done = evaluate(make_agent, task, "fast", seeds, workers, progress)
        assert done.lost == []
        return [dataclasses.replace(e, chunk_ms=0.0) for e in done.episodes]

    killed = []

    def kill(_result: EpisodeResult) -> None:
        if not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    one = results(1, lambda _: None)
    assert [e.seed for e in one] == list(seeds)
    assert results(2, kill) == one
    assert killed
    assert results(4, lambda _: None) == one


def test_an_evaluation_ends_when_its_interval_is_tight() -> None:
    class Fixed:
        obs, actions, n_obs_steps, safety = "state", "delta", 1, Safety("delta")

        def reset(self, seed: int) -> None:
            pass

        def act(self, history: object) -> np.ndarray:
            return np.zeros((8, 7))

    task = dataclasses.replace(get_task("lift"), horizon=2)
    done = evaluate(Fixed, task, "fast", range(1, 100), 1, lambda _: None, half_width=0.1)
    assert len(done.episodes) == 16  # none of 16: 0% to 19.4%; none of 15: 0% to 20.4%
    assert (done.interval[1] - done.interval[0]) / 2 <= 0.1


def test_two_policies_are_compared_start_by_start() -> None:
    """McNemar, exact: the table and p of a worked example; equal policies never differ."""
    first = {i: i < 15 for i in range(30)}
    second = {i: i >= 13 for i in range(100)}  # more starts than the first: left out
    found = paired(first, second)
    assert (found.both, found.only_first, found.only_second, found.neither) == (2, 13, 15, 0)
    assert found.p_value == pytest.approx(0.8506, abs=1e-4)
    assert paired(first, first).p_value == 1.0
    lopsided = paired(dict.fromkeys(range(12), True), {i: i < 4 for i in range(12)})
    assert lopsided.p_value == pytest.approx(2 * 0.5**8)
