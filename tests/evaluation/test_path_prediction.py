"""The predicted path against the simulated one."""

from __future__ import annotations

import numpy as np
import pytest

from ddp_cli.evaluation.path_prediction import predict_path
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task


@pytest.mark.parametrize("actions", ["delta", "absolute"])
def test_end_effector_follows_the_predicted_path(actions: str) -> None:
    sim = Simulator(get_task("lift"), "fast", actions)
    sim.reset(1)
    previous, rng = sim.eef_pose()[0], np.random.default_rng(0)
    for _ in range(3):  # a chunk from rest, then two in motion
        position, rotation = sim.eef_pose()
        velocity, direction = (position - previous) * sim.task.schema.rate, rng.uniform(-1, 1, 3) * (1, 1, 0.3)
        if actions == "delta":
            chunk = np.tile(np.concatenate([direction, np.zeros(3), [-1.0]]), (8, 1))
        else:
            goals = position + np.linspace(0.1, 1, 8)[:, None] * direction * 0.12
            chunk = np.hstack([goals, np.tile(rotation[:2].ravel(), (8, 1)), -np.ones((8, 1))])
        frame = sim.base_orientation() if actions == "delta" else None
        predicted = predict_path(position, velocity, chunk[:, :3], frame, 1 / sim.task.schema.rate)
        simulated = [position]
        for action in chunk:
            previous = sim.eef_pose()[0]
            sim.step(action)
            simulated.append(sim.eef_pose()[0])
        errors = np.linalg.norm(predicted - simulated, axis=1)
        assert np.linalg.norm(simulated[-1] - position) > 0.03
        assert errors.max() < 0.02  # [m], when it reverses at full speed; the goals are up to 30 cm away
    sim.close()


def test_delta_actions_are_in_the_frame_of_the_base() -> None:
    chunk, base = np.array([[1.0, 0, 0]]), np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    final = predict_path(np.zeros(3), np.zeros(3), chunk, base, 1 / 20)[-1]
    assert final[1] > 0.005
    assert final[[0, 2]].tolist() == [0, 0]
