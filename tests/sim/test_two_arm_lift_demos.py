"""The scripted policy of two arms in the simulator: it succeeds, is memoryless, and recovers a dropped pot."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ddp_cli.sim.scripted_policies import motion_targets, scripted_actions, target_to_action
from ddp_cli.sim.simulator import SUCCESS_HOLD_STEPS, Simulator
from ddp_cli.tasks import get_task

pytestmark = pytest.mark.slow


def intended_action(sim: Simulator) -> np.ndarray:
    return np.concatenate([target_to_action(scene, target) for scene, target in motion_targets(sim)])


def steps_to_success(sim: Simulator, limit: int) -> int | None:
    """Steps of the undisturbed policy until success has been held."""
    held = 0
    for step in range(limit):
        held = held + 1 if sim.step(intended_action(sim)) else 0
        if held == SUCCESS_HOLD_STEPS:
            return step + 1
    return None


def pot_tilt(sim: Simulator) -> float:
    """[rad]"""
    return float(np.arccos(np.clip(sim.data.xmat[sim.env.pot_body_id].reshape(3, 3)[2, 2], -1, 1)))


def test_both_arms_lift_the_pot_level() -> None:
    sim = Simulator(get_task("two_arm_lift"))
    for seed in (1000, 1001):
        sim.reset(seed)
        steps = steps_to_success(sim, 120)
        assert steps is not None
        assert steps >= 40
        assert pot_tilt(sim) < 0.1
    sim.close()


def test_intended_action_is_a_function_of_the_state_and_both_arms_are_disturbed() -> None:
    sim = Simulator(get_task("two_arm_lift"))
    sim.reset(1000)
    states, intended_actions, executed_actions = [], [], []
    for intended, action in itertools.islice(scripted_actions(sim, np.random.default_rng(0)), 70):
        states.append(sim.state())
        intended_actions.append(intended)
        executed_actions.append(action)
        sim.step(action)
    for i in (60, 3, 35):  # in another order, without history
        sim.set_state(states[i])
        np.testing.assert_allclose(intended_action(sim), intended_actions[i], atol=1e-9)
    disturbance = np.array(executed_actions)[:, [0, 7]] - np.array(intended_actions)[:, [0, 7]]
    assert (np.abs(disturbance).max(0) > 0.05).all()
    assert abs(np.corrcoef(disturbance.T)[0, 1]) < 0.6
    sim.close()


@pytest.mark.parametrize("arm", [0, 1])
def test_policy_recovers_after_one_hand_dropped_the_pot(arm: int) -> None:
    """It hangs from the other hand, which carries it down."""
    sim = Simulator(get_task("two_arm_lift"))
    sim.reset(1002)
    while sim.env._handle0_xpos[2] < 1.03:
        sim.step(intended_action(sim))
    for _ in range(12):
        action = intended_action(sim)
        action[7 * arm + 6] = -1.0
        sim.step(action)
    assert pot_tilt(sim) > 0.3
    assert steps_to_success(sim, 200) is not None
    sim.close()


@pytest.mark.parametrize("side", [1, -1])
def test_policy_rights_a_pot_that_rests_on_an_edge_and_a_handle(side: int) -> None:
    sim = Simulator(get_task("two_arm_lift"))
    sim.reset(1002)
    pot = sim.env.sim.model.get_joint_qpos_addr(sim.env.pot.joints[0])[0] + 1  # the state begins with the time
    state = sim.state()
    state[pot + 2] = 0.9
    yaw, tilt = Rotation.from_quat(np.roll(state[pot + 3 : pot + 7], -1)), Rotation.from_rotvec([0.87 * side, 0, 0])
    state[pot + 3 : pot + 7] = np.roll((yaw * tilt).as_quat(), 1)
    sim.set_state(state)
    for _ in range(10):
        sim.step(np.zeros(14))
    assert pot_tilt(sim) > 0.8
    assert steps_to_success(sim, 200) is not None
    sim.close()
