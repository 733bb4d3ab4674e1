"""Scripted policies: memoryless, and able to recover."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ddp_cli.sim.disturbances import Disturbances
from ddp_cli.sim.scripted_policies import (
    SCRIPTED_POLICIES,
    object_pose,
    observe_scene,
    scripted_actions,
    target_to_action,
)
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_intended_action_is_a_function_of_the_state(task: str) -> None:
    """An imitating policy could not infer a plan, a clock or an internal state."""
    sim = Simulator(get_task(task))
    sim.reset(1000)
    states, intended_actions = [], []
    for intended, action in itertools.islice(scripted_actions(sim, np.random.default_rng(0)), 120):
        states.append(sim.state())
        intended_actions.append(intended)
        sim.step(action)
    for i in (100, 3, 57):  # in another order, without history
        sim.set_state(states[i])
        scene = observe_scene(sim)
        action = target_to_action(scene, SCRIPTED_POLICIES[sim.task.robosuite.env_name](scene))
        np.testing.assert_allclose(action, intended_actions[i], atol=1e-9)
    sim.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["can", "square"])
def test_policy_recovers_after_dropping_the_object(task: str) -> None:
    """Halfway to the target the gripper is forced open and the end effector is moved away."""
    sim = Simulator(get_task(task))
    sim.reset(1001)
    actions = scripted_actions(sim, np.random.default_rng(0))
    carried_steps = 0
    while carried_steps < 25:
        sim.step(next(actions)[1])
        carried_steps += object_pose(sim)[0][2] > 0.93
    for _ in range(15):
        sim.step(np.array([0, 0, 0.3, 0, 0, 0, -1.0]))
    assert observe_scene(sim).object_pos[2] < 0.93
    assert any(sim.step(next(actions)[1]) for _ in range(400))
    sim.close()


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_policy_opens_a_gripper_that_closed_on_nothing(task: str) -> None:
    sim = Simulator(get_task(task))
    sim.reset(1002)
    actions = scripted_actions(sim, np.random.default_rng(0))
    while np.linalg.norm((object_pose(sim)[0] - sim.eef_pose()[0])[:2]) > 0.08:
        sim.step(next(actions)[1])
    for _ in range(15):
        sim.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert observe_scene(sim).gripper_opening < 0.01
    assert next(actions)[0][6] == -1
    assert any(sim.step(next(actions)[1]) for _ in range(300))
    sim.close()


def test_disturbances_are_correlated_and_smaller_near_contact_with_occasional_slips() -> None:
    action = np.array([0.1, 0, -0.1, 0, 0, 0.05, 1.0])

    def sample(near_contact: bool) -> np.ndarray:
        disturbances = Disturbances(np.random.default_rng(5))
        return np.stack([disturbances.apply(action, near_contact) - action for _ in range(3000)])

    free, near = sample(near_contact=False), sample(near_contact=True)
    slips = free[:, 6] != 0
    assert set(free[slips, 6]) == {-2.0}  # the gripper command is inverted
    assert 0.01 < slips.mean() < 0.1
    assert np.abs(free[:, :6]).max() <= 1.2
    np.testing.assert_allclose(near.std(0)[:6], Disturbances.NEAR_CONTACT_SCALE * free.std(0)[:6], rtol=0.1)
    assert all(np.corrcoef(free[1:, i], free[:-1, i])[0, 1] > 0.6 for i in range(6))
