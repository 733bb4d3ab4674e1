from __future__ import annotations

import itertools

import numpy as np
import pytest

from ddp_cli.sim.scripted_policies import SCRIPTS, Disturbances, command, scene, scripted_actions
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_what_is_intended_follows_from_the_state_alone(task: str) -> None:
    """Otherwise whoever imitates it would have to guess: a plan, a clock, a mood."""
    sim = Simulator(get_task(task))
    sim.reset(1000)
    states, intended = [], []
    for wanted, action in itertools.islice(scripted_actions(sim, np.random.default_rng(0)), 120):
        states.append(sim.state())
        intended.append(wanted)
        sim.step(action)
    for i in (100, 3, 57):  # in another order, with no past
        sim.set_state(states[i])
        seen = scene(sim)
        np.testing.assert_allclose(command(seen, SCRIPTS[task](seen)), intended[i], atol=1e-9)
    sim.close()


@pytest.mark.parametrize("task", ["can", "square"])
def test_it_finds_back_after_losing_the_object(task: str) -> None:
    """Halfway to the goal the fingers are forced open and the hand is moved away."""
    sim = Simulator(get_task(task))
    sim.reset(1001)
    acting = scripted_actions(sim, np.random.default_rng(0))
    carrying = 0
    while carrying < 25:
        sim.step(next(acting)[1])
        carrying += sim.object()[0][2] > 0.93
    for _ in range(15):
        sim.step(np.array([0, 0, 0.3, 0, 0, 0, -1.0]))
    assert scene(sim).object[2] < 0.93
    assert any(sim.step(next(acting)[1]) for _ in range(400))
    sim.close()


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_it_opens_fingers_that_closed_on_nothing(task: str) -> None:
    sim = Simulator(get_task(task))
    sim.reset(1002)
    acting = scripted_actions(sim, np.random.default_rng(0))
    while np.linalg.norm((sim.object()[0] - sim.hand()[0])[:2]) > 0.08:
        sim.step(next(acting)[1])
    for _ in range(15):
        sim.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert scene(sim).gap < 0.01
    assert next(acting)[0][6] == -1
    assert any(sim.step(next(acting)[1]) for _ in range(300))
    sim.close()


def test_disturbances_are_correlated_smaller_near_contact_and_now_and_then_a_slip() -> None:
    action = np.array([0.1, 0, -0.1, 0, 0, 0.05, 1.0])

    def extra(delicate: bool) -> np.ndarray:
        disturbances = Disturbances(np.random.default_rng(5))
        return np.stack([disturbances.add(action, delicate) - action for _ in range(3000)])

    free, near = extra(False), extra(True)
    slips = free[:, 6] != 0
    assert set(free[slips, 6]) == {-2.0}  # the opposite of what was meant
    assert 0.01 < slips.mean() < 0.1
    assert np.abs(free[:, :6]).max() <= 1.2
    np.testing.assert_allclose(near.std(0)[:6], Disturbances.DELICATE * free.std(0)[:6], rtol=0.1)
    assert all(np.corrcoef(free[1:, i], free[:-1, i])[0, 1] > 0.6 for i in range(6))
