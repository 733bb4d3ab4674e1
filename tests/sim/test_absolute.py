"""Absolute actions, end to end: computed from demos, executed by the simulator, learned by a policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLE_TASKS, TINY, ddp, ok, ok_json, refused

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.store import Store
from ddp_cli.errors import SimulatorError
from ddp_cli.rotation import matrix_from_6d, rotvec_to_matrix
from ddp_cli.sim import simulator
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import TASKS

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[2] / "sample_data"


def test_the_goal_of_a_delta_action_is_relative_to_the_end_effector_pose() -> None:
    """5 cm and 0.5 rad per unit of the action, multiplied from the left; base and world axes agree in these tasks."""
    sim = Simulator(TASKS["square"])
    sim.reset(1)
    for _ in range(5):
        sim.step(np.array([0.5, -0.3, -0.5, 0.1, 0.2, 0.3, 1.0]))
    sim.set_state(sim.state())
    position, rotation = sim.eef_pose()
    action = np.array([0.4, -0.6, 0.2, 0.3, -0.1, 0.5, -1.0])
    goal = sim.absolute_goal(action)
    np.testing.assert_allclose(goal[:3], position + 0.05 * action[:3], atol=1e-9)
    np.testing.assert_allclose(matrix_from_6d(goal[3:9]), rotvec_to_matrix(0.5 * action[3:6]) @ rotation, atol=1e-6)
    assert goal[9] == -1.0
    sim.close()


@pytest.mark.parametrize("task", SAMPLE_TASKS)
def test_absolute_actions_replay_the_sample_demos(task: str) -> None:
    """Absolute actions computed at the recorded states, executed open loop from the first state."""
    delta, absolute = Simulator(TASKS[task]), Simulator(TASKS[task], actions="absolute")
    with DemoFile(SAMPLES / f"{task}.hdf5") as file:
        for name in file.names[:2]:
            demo = file.read(name)
            delta.reset(demo.seed)
            goals = []
            for state, action in zip(demo.states, demo.actions, strict=True):
                delta.set_state(state)
                goals.append(delta.absolute_goal(action))
            absolute.reset(demo.seed)
            np.testing.assert_array_equal(absolute.state(), demo.states[0])
            successes = [absolute.step(goal) for goal in goals]
            assert any(successes)
    delta.close()
    absolute.close()


def test_an_environment_that_ignores_absolute_actions_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As robosuite 1.5 ignores `control_delta`: the controller remains a delta controller."""
    original = simulator.env_args
    monkeypatch.setattr(simulator, "env_args", lambda task, _actions: original(task, "delta"))
    sim = Simulator(TASKS["lift"], actions="absolute")
    with pytest.raises(SimulatorError, match="absolute actions do not work"):
        sim.reset(0)
    sim.close()


def test_train_and_rollout_use_the_action_convention_of_the_store(
    lift_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [x for key, value in TINY.items() for x in ("--set", f"{key}={value}")]
    ok(ddp("convert", lift_demos, "--out", "abs.zarr", "--actions", "absolute", "--workers", 1))
    store = Store(Path("abs.zarr"))
    assert store.attrs["action"] == {"convention": "absolute", "frame": "world", "rotation": "rotation-6d", "dim": 10}
    actions = store.read("action")
    assert actions.shape == (store.episode_ends[-1], 10)
    mismatch = ddp("train", "--task", "lift", "--data", "abs.zarr", "--steps", 1, "--set", "actions=delta", *settings)
    assert "holds absolute actions" in refused(mismatch)
    ok(ddp("train", "--task", "lift", "--data", "abs.zarr", "--steps", 1, "--name", "a", *settings))
    report = ok_json("rollout", "--inference-steps", 1, "--seed", 5)
    assert report["episodes"][0]["steps"] > 0

    from ddp_cli.core.checkpoint import load_policy
    from ddp_cli.inference.agent import PolicyAgent
    from ddp_cli.inference.policy_limits import action_limits

    policy, meta = load_policy(Path("runs/lift/a/checkpoints/best").resolve())
    assert meta["action"]["convention"] == policy.config.actions == "absolute"
    normalized = policy.normalizer.normalize("action", torch.from_numpy(actions))
    torch.testing.assert_close(normalized[:, :3].abs().amax(0), torch.ones(3))
    torch.testing.assert_close(normalized[:, 3:], torch.from_numpy(actions[:, 3:]))
    low, high = actions[:, :3].min(0), actions[:, :3].max(0)
    assert meta["action_range"] == {"low": actions.min(0).tolist(), "high": actions.max(0).tolist()}
    for limits in (action_limits(policy, meta), PolicyAgent(policy).action_limits):
        assert (limits.dim, limits.rotations) == (10, (3,))
        np.testing.assert_allclose(limits.low[:3], low - 0.05, atol=1e-5)
        np.testing.assert_allclose(limits.high[:3], high + 0.05, atol=1e-5)
    typo = ddp("convert", lift_demos, "--out", "x.zarr", "--actions", "absolut")
    assert typo.exit_code == 2
    assert "'absolut' is not one of 'delta', 'absolute'" in typo.stderr
