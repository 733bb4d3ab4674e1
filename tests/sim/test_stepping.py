"""Fast stepping gives the states of robosuite's own `env.step`, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from ddp_cli.data.actions import rotation_6d_to_axis_angle
from ddp_cli.robots import position_slices
from ddp_cli.sim.simulator import Simulator
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import TASKS

pytestmark = pytest.mark.slow


def supports_fast_stepping(sim: Simulator) -> bool:
    from ddp_cli.sim import stepping  # imports mujoco, so only after a Simulator has chosen the GL backend

    return stepping.supports_fast_stepping(sim.env)


def robosuite_step(sim: Simulator, action: np.ndarray) -> bool:
    """`sim.step` with robosuite's own step; absolute rotations are axis-angle there."""
    if sim.actions == "absolute":
        action = rotation_6d_to_axis_angle(action[None], sim.task.action_parts("absolute"))[0]
    sim.env.step(action)
    sim.refresh_kinematics()
    return sim.is_success()


@pytest.mark.parametrize("actions", ["delta", "absolute"])
@pytest.mark.parametrize("task", TASKS)
def test_states_equal_robosuites_own(task: str, actions: str) -> None:
    fast, reference = Simulator(TASKS[task], actions=actions), Simulator(TASKS[task], actions=actions)
    rng = np.random.default_rng(0)
    for seed in (3, 4):  # a reset creates new controllers, for Lift also a new model
        fast.reset(seed)
        reference.reset(seed)
        for _ in range(25):
            action = rng.uniform(-1, 1, fast.task.schema.action_dim)
            if actions == "absolute":
                goal = fast.idle_action()
                for values in position_slices(fast.task.action_parts("absolute")):
                    goal[values] += 0.05 * action[:3]
                action = goal
            else:  # computing a goal must not change the trajectory
                fast.absolute_goal(action)
            assert fast.step(action) == robosuite_step(reference, action)
            np.testing.assert_array_equal(fast.state(), reference.state())
    assert supports_fast_stepping(fast)
    for sim in (fast, reference):
        sim.close()


def test_absolute_goal_does_not_change_robosuites_own_step() -> None:
    sim, states = Simulator(TASKS["square"]), []
    for compute_goal in (False, True):
        sim.reset(1)
        for action in np.random.default_rng(1).uniform(-1, 1, (5, 7)):
            if compute_goal:
                sim.absolute_goal(action)
            robosuite_step(sim, action)
        states.append(sim.state())
    np.testing.assert_array_equal(*states)
    sim.close()


def test_states_are_equal_after_another_model_is_loaded_and_a_state_is_set() -> None:
    sim = Simulator(TASKS["lift"])
    sim.reset(0)
    xml, state = sim.model_xml(), sim.state()
    actions = np.random.default_rng(2).uniform(-1, 1, (8, 7))
    sim.reset(1)
    sim.step(actions[0])
    final_states = []
    for step in (Simulator.step, robosuite_step):
        sim.load_xml(xml)
        sim.set_state(state)
        for action in actions:
            step(sim, action)
        final_states.append(sim.state())
    np.testing.assert_array_equal(*final_states)
    sim.close()


def test_task_from_a_file_is_stepped_fast() -> None:
    sim = Simulator(task_from_json({"name": "door", "env_name": "Door"}))
    sim.reset(0)
    assert supports_fast_stepping(sim)
    states = []
    for step in (Simulator.step, robosuite_step):
        sim.reset(0)
        for action in np.random.default_rng(3).uniform(-1, 1, (5, 7)):
            step(sim, action)
        states.append(sim.state())
    np.testing.assert_array_equal(*states)
    sim.close()


def test_other_physics_falls_back_to_robosuites_own_step() -> None:
    sim = Simulator(TASKS["square"], lite_physics=False)
    sim.reset(0)
    assert not supports_fast_stepping(sim)
    before = sim.state()
    sim.step(np.array([0.5, 0, 0, 0, 0, 0, 0]))
    assert sim.state()[0] == pytest.approx(before[0] + 0.05)
    sim.close()
