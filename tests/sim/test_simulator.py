"""Seeds, states and observations of the simulator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import SAMPLE_TASKS

from ddp_cli.errors import SimulatorError, UnknownNameError
from ddp_cli.sim.scripted_policies import object_pose
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import TASKS


@pytest.fixture(scope="module")
def square() -> Iterator[Simulator]:
    sim = Simulator(TASKS["square"])
    yield sim
    sim.close()


@pytest.mark.parametrize("task", TASKS)
def test_state_and_observation_widths_match_the_task(task: str) -> None:
    sim = Simulator(TASKS[task])
    sim.reset(0)
    assert len(sim.state()) == TASKS[task].state_dim
    obs = sim.observe("state")
    assert {k: len(v) for k, v in obs.items()} == TASKS[task].vectors("state")
    if task in SAMPLE_TASKS:
        np.testing.assert_allclose(obs["object"][:3], object_pose(sim)[0], atol=1e-6)
    assert not sim.is_success()
    sim.close()


def test_seed_determines_the_initial_state(square: Simulator) -> None:
    square.reset(7)
    initial_state = square.state()
    square.step(np.ones(7))
    square.reset(8)
    assert not np.array_equal(square.state(), initial_state)
    square.reset(7)
    np.testing.assert_array_equal(square.state(), initial_state)
    other = Simulator(TASKS["square"])
    other.reset(7)
    np.testing.assert_array_equal(other.state(), initial_state)
    other.close()


@pytest.mark.parametrize("task", TASKS)
def test_observations_are_a_function_of_the_state(task: str) -> None:
    sim = Simulator(TASKS[task])
    sim.reset(3)
    width = sim.task.schema.action_dim
    for action in np.random.default_rng(0).uniform(-1, 1, (6, width)):
        sim.step(action)
    state, obs = sim.state(), sim.low_dim()
    for action in np.random.default_rng(1).uniform(-1, 1, (6, width)):
        sim.step(action)
        sim.low_dim()
    sim.set_kinematic_state(state)
    for key, value in sim.low_dim().items():
        np.testing.assert_array_equal(value, obs[key], err_msg=key)
    sim.close()


def test_observing_does_not_change_the_trajectory(square: Simulator) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7))

    def final_state(observe: bool) -> np.ndarray:
        square.reset(3)
        for action in actions:
            square.step(action)
            if observe:
                square.observe("image")
                square.low_dim()
        return square.state()

    np.testing.assert_array_equal(final_state(observe=False), final_state(observe=True))


def test_step_equals_robosuites_own_step(square: Simulator) -> None:
    """Refreshing the kinematics does not affect the dynamics: `env.step` alone gives the same trajectory."""
    actions = np.random.default_rng(1).uniform(-1, 1, (5, 7))
    square.reset(4)
    for action in actions:
        square.step(action)
    state = square.state()
    square.reset(4)
    for action in actions:
        square.env.step(action)
    np.testing.assert_array_equal(state, square.state())


def test_zero_action_after_set_state_keeps_the_pose(square: Simulator) -> None:
    square.reset(5)
    for _ in range(10):
        square.step(np.array([0.5, 0.5, -0.5, 0, 0, 0, -1]))
    state = square.state()
    square.reset(6)  # the controllers now have goals for another pose
    square.set_state(state)
    position = square.eef_pose()[0]
    for _ in range(3):
        square.step(np.zeros(7))
    assert np.linalg.norm(square.eef_pose()[0] - position) < 0.02


def test_state_of_another_size_is_rejected(square: Simulator) -> None:
    with pytest.raises(SimulatorError, match="32 values does not fit NutAssemblySquare"):
        square.set_state(np.zeros(32))


def test_unknown_render_profile_is_rejected() -> None:
    with pytest.raises(UnknownNameError, match="unknown render profile 'ultra'.*full, fast"):
        Simulator(TASKS["lift"], "ultra")


def test_unknown_action_convention_is_rejected() -> None:
    with pytest.raises(UnknownNameError, match="'absolut', did you mean 'absolute'.*Valid: delta, absolute"):
        Simulator(TASKS["lift"], actions="absolut")
