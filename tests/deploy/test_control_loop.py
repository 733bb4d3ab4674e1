"""The control loop, with robots that misbehave."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddp_cli.deploy.control_loop import ControlLoop, LoopOptions, Step
from ddp_cli.deploy.exported_policy import ExportedAgent, load_exported_agent
from ddp_cli.deploy.policy_source import open_policy_source
from ddp_cli.deploy.robot import MockRobot, make_robot
from ddp_cli.deploy.sim_robot import SimulatedRobot
from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.evaluation.rollout import run_episode
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task, get_task

LIFT = get_task("lift")


@pytest.fixture(scope="module")
def agent(policy_folder: Path) -> ExportedAgent:
    return load_exported_agent(policy_folder)


class TestRobot(MockRobot):
    """A mock robot whose methods tests replace."""

    __test__ = False

    def __init__(self) -> None:
        super().__init__(LIFT, "image")
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1


def run(robot: Any, agent: ExportedAgent, n: int = 30, on_step: Any = lambda _: None, **options: Any) -> ControlLoop:
    loop = ControlLoop(robot, agent, LIFT, LoopOptions(n, **options))
    loop.run(0, on_step)
    return loop


def test_it_keeps_the_rate_and_stops_the_robot(agent: ExportedAgent) -> None:
    robot, start = TestRobot(), time.monotonic()
    timing = run(robot, agent, 30).timing
    assert time.monotonic() - start >= 29 / 20
    assert (len(robot.commands), robot.stops) == (30, 1)
    assert len(timing.late) == len(timing.busy) == 30
    assert min(timing.late) >= 0
    assert 3 <= len(timing.chunks) <= 9, "one in 4 periods"
    assert np.abs(robot.commands).max() > 0


def test_a_step_that_takes_long_skips_ticks(agent: ExportedAgent) -> None:
    robot = TestRobot()
    command = robot.command
    robot.command = lambda action: (time.sleep(0.18 if len(robot.commands) == 5 else 0), command(action))
    assert run(robot, agent, 10).timing.skipped_ticks >= 2


def test_without_latency_it_equals_a_rollout_step_by_step(trained: Path) -> None:
    source = open_policy_source(next(trained.glob("*/*/checkpoints/best")).resolve(), "cpu", None, None, "auto")
    sim, executed = Simulator(source.task, source.render, source.actions), []
    try:
        sim.task = Task(LIFT.name, LIFT.schema, LIFT.simulator, 30)
        original = sim.step
        sim.step = lambda action: executed.append(action) or original(action)
        result = run_episode(sim, source.make_agent(), 100007)
        expected = np.array(executed)
        executed.clear()
        loop = ControlLoop(
            SimulatedRobot(sim, source.obs, 100007), source.make_agent(), source.task, LoopOptions(400, True, False)
        )
        success, steps = loop.run(100007)
    finally:
        sim.close()
    assert (success, steps) == (result.success, 30)
    np.testing.assert_array_equal(np.array(executed), expected)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ZeroDivisionError])
def test_the_robot_is_stopped_after_any_error(agent: ExportedAgent, fault: type[BaseException]) -> None:
    robot = TestRobot()

    def on_step(_: Step) -> None:
        raise fault

    with pytest.raises(fault):
        run(robot, agent, 5, on_step)
    assert (robot.stops, len(robot.commands)) == (1, 1)


def test_old_observations_stop_the_robot(agent: ExportedAgent) -> None:
    robot, begin = TestRobot(), time.monotonic()
    observe = robot.observe
    robot.observe = lambda: {**observe(), "stamp": begin}  # a camera that froze
    with pytest.raises(DdpError, match="s old, more than 0.3 s"):
        run(robot, agent, 100, max_age=0.3)
    assert robot.stops == 1
    assert 1 <= len(robot.commands) <= 7


def test_a_robot_that_hangs_is_stopped_meanwhile(agent: ExportedAgent) -> None:
    robot, stopped_at = TestRobot(), []
    observe, stopped = robot.observe, threading.Event()

    def stop() -> None:
        stopped_at.append(threading.current_thread().name)
        stopped.set()

    def hang() -> dict:
        if len(robot.commands) == 4:
            assert stopped.wait(10), "nobody stopped the robot"
        return observe()

    robot.stop, robot.observe = stop, hang
    with pytest.raises(DdpError, match="stood still"):
        run(robot, agent, 100)
    assert stopped_at[0] == "ddp-watchdog"
    assert len(robot.commands) == 4, "nothing is commanded after the stop"


def test_an_operator_takes_over(agent: ExportedAgent) -> None:
    robot, steps = TestRobot(), []
    operator = np.full(7, 0.25)
    robot.takeover = lambda: operator if 3 <= len(robot.commands) < 6 else None  # type: ignore[attr-defined]
    run(robot, agent, 10, steps.append, sync=True, real_time=False)
    assert [step.is_takeover for step in steps] == [3 <= i < 6 for i in range(10)]
    assert all(np.array_equal(robot.commands[i], operator) == (3 <= i < 6) for i in range(10))
    robot.takeover = lambda: operator[:3]  # type: ignore[attr-defined]
    with pytest.raises(DdpError, match="is not an action"):
        run(robot, agent, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda obs: obs.pop("agentview_image"), "does not observe 'agentview_image'"),
        (lambda obs: obs.update(agentview_image=np.zeros((10, 10, 3), np.uint8)), "'agentview_image' is uint8"),
        (lambda obs: obs.update(robot0_eef_pos=[0, 0, np.nan]), "'robot0_eef_pos' is"),
    ],
)
def test_observations_that_do_not_match_are_named(agent: ExportedAgent, change: Any, message: str) -> None:
    robot = TestRobot()
    observe = robot.observe
    robot.observe = lambda: (obs := observe(), change(obs))[0]
    with pytest.raises(DdpError, match=message):
        run(robot, agent)
    assert robot.commands == []


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_robot.py").write_text(
        "class Arm:\n"
        "    def __init__(self, port=1):\n        self.port = 1 / port\n"
        "    def observe(self): return {}\n    def command(self, action): pass\n"
        "    def reset(self): pass\n    def stop(self): pass\n"
        "class Half:\n    def observe(self): return {}\n"
    )
    monkeypatch.chdir(tmp_path)
    return "own_robot"


def test_robots_are_found_in_the_current_folder(module: str) -> None:
    assert make_robot(f"{module}:Arm", {"port": 2}).port == 0.5  # type: ignore[attr-defined]
    for name, arguments, message in (
        (f"{module}:Leg", {}, "has no 'Leg'"),
        (f"{module}:Half", {}, "has no method 'command'"),
        (f"{module}:Arm", {"port": 0}, "cannot be constructed: ZeroDivisionError"),
        ("no_such_module:Arm", {}, "no module 'no_such_module'"),
        ("mok", {}, "did you mean 'mock'"),
    ):
        with pytest.raises((DdpError, ConfigError), match=message):
            make_robot(name, arguments)


def test_policies_are_given_the_actions_that_are_committed(agent: ExportedAgent, monkeypatch: Any) -> None:
    prefixes, act = [], agent.act

    def act_slowly(history: Any, prefix: Any = None) -> Any:
        time.sleep(0.06)
        prefixes.append(prefix)
        return act(history)

    monkeypatch.setattr(agent, "act", act_slowly)
    monkeypatch.setattr(agent, "prefix_steps", 4)
    robot = TestRobot()
    run(robot, agent, 24)
    assert len(prefixes[0]) == 0, "nothing was executed yet"
    lengths = [len(prefix) for prefix in prefixes[1:]]
    assert 2 <= max(lengths) <= 4, "a chunk takes two control periods at least"
