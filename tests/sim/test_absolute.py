"""Absolute actions, end to end: stored goals, an environment that obeys them, a policy that follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, ddp, ok, ok_json, refused

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.store import Store
from ddp_cli.errors import SimulatorError
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d, rotvec_to_matrix
from ddp_cli.sim import simulator
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import TASKS

SAMPLES = Path(__file__).parents[2] / "sample_data"


def test_rotation_6d_is_the_first_two_rows() -> None:
    matrix = rotvec_to_matrix(np.array([0.3, -1.2, 0.5]))
    rows = matrix_to_6d(matrix)
    np.testing.assert_array_equal(rows, np.concatenate([matrix[0], matrix[1]]))
    np.testing.assert_allclose(matrix_from_6d(rows), matrix, atol=1e-12)
    crooked = matrix_from_6d(np.random.default_rng(0).normal(size=(20, 6)))
    np.testing.assert_allclose(crooked @ crooked.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (20, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(crooked), 1.0)


def test_a_goal_is_the_delta_from_where_the_hand_is() -> None:
    """Base and world directions agree for these tasks: 5 cm and 0.5 rad an action unit, left-multiplied."""
    sim = Simulator(TASKS["square"])
    sim.reset(1)
    for _ in range(5):
        sim.step(np.array([0.5, -0.3, -0.5, 0.1, 0.2, 0.3, 1.0]))
    sim.set_state(sim.state())
    position, rotation = sim.hand()
    action = np.array([0.4, -0.6, 0.2, 0.3, -0.1, 0.5, -1.0])
    goal = sim.goal(action)
    np.testing.assert_allclose(goal[:3], position + 0.05 * action[:3], atol=1e-9)
    np.testing.assert_allclose(matrix_from_6d(goal[3:9]), rotvec_to_matrix(0.5 * action[3:6]) @ rotation, atol=1e-6)
    assert goal[9] == -1.0
    sim.close()


@pytest.mark.parametrize("task", TASKS)
def test_stored_goals_replay_the_sample_demos(task: str) -> None:
    """Absolute actions of the recorded states, executed open loop from the start (2 demos; more by hand)."""
    delta, absolute = Simulator(TASKS[task]), Simulator(TASKS[task], actions="absolute")
    with DemoFile(SAMPLES / f"{task}.hdf5") as file:
        for name in file.names[:2]:
            demo = file.read(name)
            delta.reset(demo.seed)
            goals = []
            for state, action in zip(demo.states, demo.actions, strict=True):
                delta.set_state(state)
                goals.append(delta.goal(action))
            absolute.reset(demo.seed)
            np.testing.assert_array_equal(absolute.state(), demo.states[0])
            successes = [absolute.step(goal) for goal in goals]
            assert any(successes)
    delta.close()
    absolute.close()


def test_an_environment_that_ignores_the_convention_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As robosuite 1.5 does with `control_delta`: the controller stays a delta controller."""
    original = simulator.env_args
    monkeypatch.setattr(simulator, "env_args", lambda task, _actions: original(task, "delta"))
    sim = Simulator(TASKS["lift"], actions="absolute")
    with pytest.raises(SimulatorError, match="absolute actions do not work"):
        sim.reset(0)
    sim.close()


def test_convert_train_and_eval_follow_the_store(
    lift_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [x for key, value in TINY.items() for x in ("--set", f"{key}={value}")]
    ok(ddp("convert", lift_demos, "--out", "abs.zarr", "--actions", "absolute", "--workers", 1))
    store = Store(Path("abs.zarr"))
    assert store.attrs["action"] == {"convention": "absolute", "frame": "world", "rotation": "rotation-6d", "dim": 10}
    actions = store.read("action")
    assert actions.shape == (store.episode_ends[-1], 10)
    wrong = ddp("train", "--task", "lift", "--data", "abs.zarr", "--steps", 1, "--set", "actions=delta", *settings)
    assert "holds absolute actions" in refused(wrong)
    ok(ddp("train", "--task", "lift", "--data", "abs.zarr", "--steps", 1, "--name", "a", *settings))
    report = ok_json("rollout", "--inference-steps", 1, "--seed", 5)
    assert report["episodes"][0]["steps"] > 0

    from ddp_cli.core.checkpoint import load_policy
    from ddp_cli.inference.agent import PolicyAgent

    policy, meta = load_policy(Path("runs/lift/a/checkpoints/best").resolve())
    assert meta["action"]["convention"] == policy.config.actions == "absolute"
    scaled = policy.normalizer.normalize("action", torch.from_numpy(actions))
    torch.testing.assert_close(scaled[:, :3].abs().amax(0), torch.ones(3))
    torch.testing.assert_close(scaled[:, 3:], torch.from_numpy(actions[:, 3:]))
    safety = PolicyAgent(policy).safety
    assert safety.actions == "absolute"
    np.testing.assert_allclose(safety.low, actions[:, :3].min(0) - 0.05, atol=1e-5)
    np.testing.assert_allclose(safety.high, actions[:, :3].max(0) + 0.05, atol=1e-5)
    assert "absolut" in refused(ddp("convert", lift_demos, "--out", "x.zarr", "--actions", "absolut"))
