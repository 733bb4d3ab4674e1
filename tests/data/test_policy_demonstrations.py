"""Episodes of a policy with the labels of the scripted policy, and takeovers: exact, reproducible, kept."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ddp, ok, ok_json
from data.test_collection import contents, stop_after

from ddp_cli.action_limits import ActionLimits
from ddp_cli.data import policy_demonstrations
from ddp_cli.data.collection import collect
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.demo_file_inspection import describe_demo_file, inspect_demo_file
from ddp_cli.data.policy_demonstrations import (
    TAKEOVER_STEPS,
    ActingPolicy,
    goal_to_delta,
    has_strayed,
    record_policy_demo,
)
from ddp_cli.data.store import Store
from ddp_cli.deploy.policy_source import open_policy_source, resolve_policy
from ddp_cli.errors import DataError
from ddp_cli.evaluation.rollout import Observation, StepInfo, run_episode
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d
from ddp_cli.sim.scripted_policies import scripted_action
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task, get_task

LIFT = get_task("lift")


def short(horizon: int) -> Task:
    return dataclasses.replace(LIFT, horizon=horizon)


class FakeAgent:
    """A state policy that predicts chunks of two actions from the last observation."""

    obs, n_obs_steps = "state", 1

    def __init__(self, predict: Callable[[Observation], np.ndarray], actions: str = "delta") -> None:
        self._predict, self.actions = predict, actions
        self.action_limits = ActionLimits.from_parts(LIFT.action_parts(actions))

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, history: Sequence[Observation]) -> np.ndarray:
        return np.stack([self._predict(history[-1]) + self._rng.normal(0, 1e-3, 7) for _ in range(2)])


def leave(_: Observation) -> np.ndarray:
    """Up and away from the cube."""
    return np.array([-0.3, 0.2, 0.4, 0.0, 0.0, 0.1, 0.2])


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    sim = Simulator(short(150))
    yield sim
    sim.close()


@pytest.mark.parametrize("takeover", [False, True])
def test_labels_are_the_scripted_policys_and_executed_actions_replay_exactly(sim: Simulator, takeover: bool) -> None:
    demo = record_policy_demo(sim, FakeAgent(leave), 1003, takeover)
    assert demo is not None
    assert demo.intended is not None
    assert np.abs(demo.intended - demo.actions)[: demo.policy_steps].max() > 0.5
    sim.reset(99)  # another state, which must not matter
    sim.step(np.ones(7))
    sim.load_xml(demo.xml)  # the size of the cube varies
    sim.set_state(demo.states[0])
    for state, action, intended in zip(demo.states, demo.actions, demo.intended, strict=True):
        np.testing.assert_array_equal(sim.state(), state)
        np.testing.assert_array_equal(scripted_action(sim), intended)
        sim.step(action)
    assert sim.is_success() == demo.success == takeover


def test_failed_episodes_of_a_policy_are_kept_up_to_the_horizon(sim: Simulator) -> None:
    demo = record_policy_demo(sim, FakeAgent(leave), 1003, takeover=False)
    assert demo is not None
    assert (len(demo.actions), demo.policy_steps, demo.success) == (150, 150, False)


def test_the_demonstrator_takes_over_when_the_policy_has_strayed(sim: Simulator) -> None:
    demo = record_policy_demo(sim, FakeAgent(leave), 1003, takeover=True)
    assert demo is not None
    assert demo.intended is not None
    assert demo.success
    assert demo.policy_steps == TAKEOVER_STEPS
    np.testing.assert_array_equal(demo.actions[TAKEOVER_STEPS:], demo.intended[TAKEOVER_STEPS:])


def follow(sim: Simulator, speed: float) -> Callable[[Observation], np.ndarray]:
    """The scripted policy, with its translations scaled by `speed`."""
    return lambda _: scripted_action(sim) * ([speed] * 3 + [1] * 4)


def test_a_policy_that_is_too_slow_is_relieved_at_the_horizon(sim: Simulator) -> None:
    demo = record_policy_demo(sim, FakeAgent(follow(sim, 0.1)), 1003, takeover=True)
    assert demo is not None
    assert (demo.policy_steps, demo.success) == (150, True)
    assert len(demo.actions) > 150


def test_a_policy_that_succeeds_is_left_alone(sim: Simulator) -> None:
    demo = record_policy_demo(sim, FakeAgent(follow(sim, 1.0)), 1003, takeover=True)
    assert demo is not None
    assert demo.success
    assert demo.policy_steps == len(demo.actions) < 150
    sim.set_state(demo.states[-1], demo.actions[:-1])
    assert sim.is_success()  # success has held, and the episode ends with it


def test_without_success_after_a_takeover_there_is_no_demo(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_demonstrations, "scripted_action", lambda _: np.array([0, 0, -0.1, 0, 0, 0, 1.0]))
    assert record_policy_demo(sim, FakeAgent(leave), 1003, takeover=True) is None


def test_a_policy_has_strayed_when_it_makes_no_progress_along_the_demonstrators_motion() -> None:
    rng = np.random.default_rng(0)
    intended = list(rng.uniform(-1, 1, (TAKEOVER_STEPS, 7)))
    still, opposed = [a * 0 for a in intended], [-a for a in intended]
    slow = [a * 0.1 for a in intended]
    for strayed in (still, opposed):
        assert has_strayed(strayed, intended)
        assert not has_strayed(strayed[1:], intended[1:])
        assert not has_strayed(strayed + intended, intended + intended)  # it has come back
    assert not has_strayed(slow, intended)
    assert not has_strayed(still, still)  # the demonstrator waits, too


def test_the_policy_acts_as_in_an_evaluation(trained: Path) -> None:
    agent = open_policy_source(
        resolve_policy(trained / "lift/tiny", trained, None), "cpu", None, None, "auto"
    ).make_agent()
    sim, executed = Simulator(short(30)), []

    def note(info: StepInfo) -> None:
        if info.executed < len(info.chunk) and info.step < 30:
            executed.append(info.chunk[info.executed])

    run_episode(sim, agent, 1003, note)
    demo = record_policy_demo(sim, agent, 1003, takeover=False)
    assert demo is not None
    np.testing.assert_array_equal(demo.actions, executed)
    sim.close()


def test_absolute_goals_become_the_delta_actions_that_set_them(sim: Simulator) -> None:
    sim.reset(1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, 7)
        np.testing.assert_allclose(goal_to_delta(sim, sim.absolute_goal(action)), action, atol=1e-6)
        sim.step(action)
    position, rotation = sim.eef_pose()
    far = np.concatenate([position + np.array([1.0, 0.0, 0.01]), matrix_to_6d(rotation), [1.0]])
    np.testing.assert_allclose(goal_to_delta(sim, far)[:3], [1.0, 0.0, 0.2], atol=1e-6)


def test_goals_of_an_absolute_policy_are_reached(sim: Simulator) -> None:
    sim.reset(1003)
    position, rotation = sim.eef_pose()
    goal = np.concatenate([position + np.array([0.05, -0.05, 0.05]), matrix_to_6d(rotation), [-1.0]])
    agent = FakeAgent(lambda _: goal, "absolute")
    agent.act = lambda _: goal[None]  # type: ignore[method-assign]
    demo = record_policy_demo(sim, agent, 1003, takeover=False)
    assert demo is not None
    assert demo.actions.shape == (150, 7)
    sim.set_kinematic_state(demo.states[-1])
    assert np.linalg.norm(sim.eef_pose()[0] - goal[:3]) < 0.01
    assert np.abs(sim.eef_pose()[1] - matrix_from_6d(goal[3:9])).max() < 0.02


def leaving_agent() -> FakeAgent:
    return FakeAgent(leave)


def acting(takeover: bool, sha256: str = "a" * 64) -> ActingPolicy:
    return ActingPolicy(leaving_agent, "fast", takeover, {"sha256": sha256})


@pytest.fixture(scope="module")
def dagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two failed episodes."""
    out = tmp_path_factory.mktemp("dagger") / "d.hdf5"
    result = collect(short(60), 2, out, 1003, 1, lambda *_: None, acting(takeover=False))
    assert (result.demos, result.failures, result.policy_successes, result.takeovers) == (2, 0, 0, 0)
    return out


def test_the_file_says_who_acted_and_whether_the_episode_succeeded(dagger: Path, tmp_path: Path) -> None:
    with h5py.File(dagger) as file:
        identity = json.loads(file["data"].attrs["identity"])
        assert identity["policy"] == {"sha256": "a" * 64, "takeover": None}
    result = collect(short(60), 2, tmp_path / "t.hdf5", 1003, 1, lambda *_: None, acting(takeover=True))
    assert (result.policy_successes, result.takeovers) == (0, 2)
    for path, expected in ((dagger, (60, False)), (tmp_path / "t.hdf5", (TAKEOVER_STEPS, True))):
        with DemoFile(path) as demos:
            assert [(demo.policy_steps, demo.success) for demo in demos] == [expected] * 2
            rows = describe_demo_file(inspect_demo_file(demos))
        assert ("policy", f"acted in 2, of which {2 * expected[1]} ended with success") in rows


@pytest.mark.slow
def test_the_file_depends_neither_on_interruptions_nor_on_workers(dagger: Path, tmp_path: Path) -> None:
    resumed, parallel = tmp_path / "resumed.hdf5", tmp_path / "parallel.hdf5"
    with pytest.raises(KeyboardInterrupt):
        collect(short(60), 2, resumed, 1003, 1, stop_after(1, KeyboardInterrupt()), acting(takeover=False))
    collect(short(60), 2, resumed, 1003, 1, lambda *_: None, acting(takeover=False))
    collect(short(60), 2, parallel, 1003, 2, lambda *_: None, acting(takeover=False))
    expected = contents(dagger)
    for path in (resumed, parallel):
        actual = contents(path)
        assert actual.keys() == expected.keys()
        assert all(np.array_equal(actual[key], value) for key, value in expected.items())


def test_episodes_of_another_policy_are_not_continued(tmp_path: Path) -> None:
    out = tmp_path / "d.hdf5"
    with pytest.raises(KeyboardInterrupt):
        collect(short(20), 2, out, 1003, 1, stop_after(1, KeyboardInterrupt()), acting(takeover=False))
    for other, difference in (
        (acting(takeover=False, sha256="b" * 64), "policy sha256 a+ instead of b+"),
        (acting(takeover=True), "policy takeover None instead of {'steps': 48"),
        (None, "policy sha256 a+ instead of None"),
    ):
        with pytest.raises(DataError, match=f"of another collection: {difference}") as raised:
            collect(short(20), 2, out, 1003, 1, lambda *_: None, other)
        assert "and the policy, --takeover and sampling options that it began with" in raised.value.hint


def test_labels_are_trained_on_together_with_demonstrations(dagger: Path, lift_zarr: Path, tmp_path: Path) -> None:
    """The replay check executes what was executed; the store holds the labels, and merges with that of other demos."""
    report = ok_json("convert", dagger, "--out", tmp_path / "dagger.zarr", "--obs", "image", "--workers", 1)
    assert report["check"]["result"] == "passed"
    assert report["check"]["chunk_mm_p90"] < 0.1
    store = Store(tmp_path / "dagger.zarr")
    with DemoFile(dagger) as demos:
        intended = np.concatenate([demo.intended for demo in demos if demo.intended is not None])
    np.testing.assert_array_equal(store.read("action"), intended.astype(np.float32))
    ok(ddp("convert", tmp_path / "dagger.zarr", lift_zarr, "--out", tmp_path / "both.zarr"))
    both = Store(tmp_path / "both.zarr")
    assert len(both.episode_ends) == 4
    assert both.check["result"] == "passed"
    assert both.policy_episodes == {"dagger/demo_0": False, "dagger/demo_1": False}


def test_labels_of_the_demonstrators_own_steps_must_resemble_them(dagger: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copy(dagger, tmp_path / "d.hdf5"))
    with h5py.File(broken, "r+") as file:
        file["data/demo_0"].attrs["policy_steps"] = 20
    with DemoFile(broken) as demos, pytest.raises(DataError, match="demo_0: its intended actions do not resemble"):
        demos.read("demo_0")
    with h5py.File(broken, "r+") as file:
        file["data/demo_0"].attrs["policy_steps"] = 61
    with DemoFile(broken) as demos, pytest.raises(DataError, match="policy_steps is 61, but there are 60 steps"):
        demos.read("demo_0")
