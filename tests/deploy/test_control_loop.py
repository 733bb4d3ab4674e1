"""The control loop, with robots that misbehave."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ddp, refused

from ddp_cli.data.store import Store
from ddp_cli.deploy.control_loop import ControlLoop, LoopOptions, Step
from ddp_cli.deploy.exported_policy import ExportedAgent, load_exported_agent
from ddp_cli.deploy.policy_source import open_policy_source
from ddp_cli.deploy.robot import MockRobot, make_robot
from ddp_cli.deploy.sim_robot import SimulatedRobot
from ddp_cli.deploy.streaming import ActionStream
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


class AlternatingAgent:
    """`agent`, whose chunks hold 0.4 and -0.4 by turns."""

    def __init__(self, agent: ExportedAgent) -> None:
        self.agent, self.value = agent, 0.4

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)

    def act(self, _history: Any) -> np.ndarray:
        self.value = -self.value
        return np.full((self.n_action_steps, 7), self.value)


def test_chunks_take_over_gradually(agent: ExportedAgent) -> None:
    medians = []  # of the changes of a value: on a busy machine, some chunks are late and some ticks are skipped
    for blend_steps in (0, 3):
        robot = TestRobot()
        run(robot, AlternatingAgent(agent), 30, blend_steps=blend_steps)
        changes = np.abs(np.diff(robot.commands, axis=0))
        medians.append([np.median(values[values > 1e-9]) for values in changes.T])
    at_once, gradually = medians
    np.testing.assert_allclose(at_once, 0.8)
    np.testing.assert_allclose(gradually, [0.2] * 6 + [0.8])  # the last one is the gripper


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blend-steps", 8], "--blend-steps 8 does not fit in a chunk of 8 actions. At most 7."),
        (["--replan-every", 9], "--replan-every 9 is longer than a chunk of 8 actions. At most 8."),
        (["--blend-steps", 2, "--sync"], "--blend-steps does not go with --sync"),
        (["--replan-every", 4, "--sync"], "--replan-every does not go with --sync"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_robot_moves(
    options: list[object], message: str, policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arm.py").write_text("raise SystemExit('the robot was opened')\n")
    assert message in refused(ddp("run", policy_folder, "--robot", "arm:Arm", *options))


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


def test_recorded_episodes_do_not_start_from_the_seeds_of_evaluations(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("run", policy_folder, "--robot", "sim", "--sync", "--max-steps", 2, "--json")
    recorded = ddp(*command, "--record", "tries.zarr")
    assert recorded.exit_code == 0
    assert "warning" not in recorded.stderr
    assert "also those of evaluations" in ddp(*command, "--record", "tests.zarr", "--seed", 100000).stderr
    images = [Store(Path(f"{name}.zarr")).read("agentview_image")[0] for name in ("tries", "tests")]
    assert not np.array_equal(*images)


def test_the_slow_first_images_of_a_simulator_do_not_delay_the_first_chunk(agent: ExportedAgent) -> None:
    class SlowStart:
        task, hold_steps, is_over, observations = LIFT, 10, False, 0

        def reset(self, seed: int) -> None:
            """Nothing to do."""

        def observe(self, obs: str) -> dict[str, np.ndarray]:
            self.observations += 1
            time.sleep(1.0 if self.observations == 1 else 0.0)
            return TestRobot().observe()

        def step(self, action: np.ndarray) -> bool:
            return False

        def idle_action(self) -> np.ndarray:
            return np.zeros(7)

    env = SlowStart()
    ControlLoop(SimulatedRobot(env, "image", 0), agent, LIFT, LoopOptions(3)).run(0)
    assert env.observations > 3


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ZeroDivisionError])
def test_the_robot_is_stopped_after_any_error(agent: ExportedAgent, fault: type[BaseException]) -> None:
    robot = TestRobot()

    def on_step(_: Step) -> None:
        raise fault

    with pytest.raises(fault):
        run(robot, agent, 5, on_step)
    assert (robot.stops, len(robot.commands)) == (1, 1)


def test_a_robot_that_cannot_be_stopped_does_not_hide_the_first_error(agent: ExportedAgent) -> None:
    robot = TestRobot()

    def no_step(_: Step) -> None:
        raise DdpError("the arm lost its power.")

    def no_stop() -> None:
        raise OSError("port closed")

    robot.stop = no_stop  # type: ignore[method-assign]
    with pytest.raises(DdpError, match="power") as raised:
        run(robot, agent, 5, no_step)
    assert raised.value.__notes__ == ["The robot could not be stopped, either: OSError port closed"]
    with pytest.raises(OSError, match="port closed"):
        run(robot, agent, 5)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP"])
def test_signals_that_end_or_pause_a_process_stop_the_robot(
    name: str, policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGQUIT and SIGTSTP are Ctrl-\\ and Ctrl-Z."""
    monkeypatch.chdir(tmp_path)
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    robot = TestRobot()
    robot.command = lambda _: signal.raise_signal(number)  # type: ignore[method-assign]
    monkeypatch.setattr("ddp_cli.deploy.robot.MockRobot", lambda *_: robot)
    try:
        result = ddp("run", policy_folder, "--robot", "mock")
    finally:
        signal.signal(number, before)
    assert (result.exit_code, robot.stops) == (130, 1)


def test_chunks_are_aligned_by_the_stamp_of_the_robot(agent: ExportedAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long `observe` takes."""
    robot, given, used = TestRobot(), [], []
    observe, stream_observe = robot.observe, ActionStream.observe

    def slowly() -> dict[str, Any]:
        time.sleep(0.03)
        given.append(time.monotonic())
        return {**observe(), "stamp": given[-1]}

    robot.observe = slowly  # type: ignore[method-assign]
    monkeypatch.setattr(
        ActionStream, "observe", lambda self, obs, stamp: (used.append(stamp), stream_observe(self, obs, stamp))
    )
    run(robot, agent, 6)
    assert used == given


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
        (lambda obs: obs.update(robot0_eef_pos=[0, 0, np.nan]), "'robot0_eef_pos' is .*finite"),
        (lambda obs: obs.update(robot0_eef_pos=[0, 0, 1e300]), "'robot0_eef_pos' is .*finite"),
        (lambda obs: obs.update(robot0_eef_pos=np.zeros(1000)), "'robot0_eef_pos' is float64 \\(1000,\\)"),
        (lambda obs: obs.update(robot0_eef_pos=[0, [1], 2]), "'robot0_eef_pos' is no array"),
        (lambda obs: obs.update(stamp=np.nan), "'stamp' is nan"),
        (lambda obs: obs.update(stamp="now"), "'stamp' is 'now'"),
        (lambda obs: obs.update(stamp=time.monotonic() + 1e9), "ahead. Use time.monotonic"),
    ],
)
def test_observations_that_do_not_match_are_named(agent: ExportedAgent, change: Any, message: str) -> None:
    robot = TestRobot()
    observe = robot.observe
    robot.observe = lambda: (obs := observe(), change(obs))[0]
    with pytest.raises(DdpError, match=message):
        run(robot, agent)
    assert robot.commands == []


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("observe", None, "`observe` of the robot returned NoneType"),
        ("outcome", 1, "`outcome` of the robot returned 1"),
        ("outcome", "yes", "`outcome` of the robot returned 'yes'"),
        ("takeover", "left", "takeover\\(\\) = 'left' is not an action"),
        ("takeover", [0.0] * 6, "takeover\\(\\) = .* is not an action"),
    ],
)
def test_results_of_methods_that_cannot_be_used_are_named(
    agent: ExportedAgent, method: str, value: object, message: str
) -> None:
    robot = TestRobot()
    setattr(robot, method, lambda: value)
    with pytest.raises(DdpError, match=message):
        run(robot, agent)
    assert robot.stops == 1


def test_outcomes_of_numpy_count(agent: ExportedAgent) -> None:
    robot = TestRobot()
    robot.outcome = lambda: np.arange(3).sum() == 3 if len(robot.commands) == 2 else None  # type: ignore[attr-defined]
    success, steps = ControlLoop(robot, agent, LIFT, LoopOptions(9, True, False)).run(0)
    assert success is True
    assert steps == 2


class SlowAgent:
    """An agent whose chunks take some time [s]."""

    def __init__(self, agent: ExportedAgent, seconds: float) -> None:
        self._agent, self._seconds = agent, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    def act(self, *arguments: Any, **keywords: Any) -> Any:
        time.sleep(self._seconds)
        return self._agent.act(*arguments, **keywords)


def test_the_robot_is_stopped_before_the_end_of_a_chunk_is_waited_for(agent: ExportedAgent) -> None:
    robot, interrupted, stopped = TestRobot(), [], []
    robot.stop = lambda: stopped.append(time.monotonic())

    def on_step(_: Step) -> None:
        if len(robot.commands) == 6:  # a chunk has been requested
            interrupted.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(robot, SlowAgent(agent, 2.0), 100, on_step)  # type: ignore[arg-type]
    assert stopped[0] - interrupted[0] < 1.0


def test_a_second_interrupt_does_not_prevent_the_stop(agent: ExportedAgent) -> None:
    robot, stops = TestRobot(), []

    def stop() -> None:
        stops.append(len(stops))
        if len(stops) == 1:
            raise KeyboardInterrupt

    robot.stop = stop
    with pytest.raises(KeyboardInterrupt):
        run(robot, agent, 2)
    assert len(stops) == 2


def test_only_robots_in_real_time_are_stopped_for_slow_chunks(agent: ExportedAgent) -> None:
    robot, slow = TestRobot(), SlowAgent(agent, 0.7)
    run(robot, slow, 12, sync=True, real_time=False)  # type: ignore[arg-type]
    assert (len(robot.commands), robot.stops) == (12, 1)
    with pytest.raises(DdpError, match="chunks take too long for --sync"):
        run(robot, slow, 12, sync=True)  # type: ignore[arg-type]


def test_a_first_observation_that_takes_long_is_named(agent: ExportedAgent) -> None:
    robot = TestRobot()
    observe = robot.observe
    robot.observe = lambda: (time.sleep(0.6), observe())[1]
    with pytest.raises(DdpError, match="the first observation is too old"):
        run(robot, agent)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_robot.py").write_text(
        "class Arm:\n"
        "    def __init__(self, port=1):\n        self.port = 1 / port\n"
        "    def observe(self): return {}\n    def command(self, action): pass\n"
        "    def reset(self): pass\n    def stop(self): pass\n"
        "class Half:\n    def observe(self): return {}\n"
    )
    (tmp_path / "faulty_robot.py").write_text("raise ValueError('no GPIO')\n")
    monkeypatch.chdir(tmp_path)
    return "own_robot"


def test_robots_are_found_in_the_current_folder(module: str) -> None:
    assert make_robot(f"{module}:Arm", {"port": 2}).port == 0.5  # type: ignore[attr-defined]
    for name, arguments, message in (
        (f"{module}:Leg", {}, "has no class 'Leg'. It has Arm."),
        (f"{module}.py:Arm", {}, "there is no module 'own_robot.py'"),
        ("robots/own_robot:Arm", {}, "'robots/own_robot' is not the name of a module"),
        (":Arm", {}, "'' is not the name of a module"),
        ("faulty_robot:Arm", {}, "'faulty_robot' cannot be imported: ValueError: no GPIO"),
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
