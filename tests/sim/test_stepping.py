"""The shorter control period goes robosuite's way, bit for bit; pictures lack nothing that a camera sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.rotation import matrix_to_6d
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import CAMERAS, TASKS, task_from_json

SAMPLES = Path(__file__).parents[2] / "sample_data"


def can_step(sim: Simulator) -> bool:
    from ddp_cli.sim import stepping  # only now: a Simulator chooses how to render before mujoco is loaded

    return stepping.can_step(sim._env)


@pytest.mark.parametrize("actions", ["delta", "absolute"])
@pytest.mark.parametrize("task", TASKS)
def test_states_are_robosuites_own(task: str, actions: str) -> None:
    mine, plain = Simulator(TASKS[task], actions=actions), Simulator(TASKS[task], actions=actions)
    rng = np.random.default_rng(0)
    for seed in (3, 4):  # a reset makes new controllers, for Lift a new model as well
        mine.reset(seed)
        plain.reset(seed)
        plain._step = plain._env.step
        for _ in range(25):
            action = rng.uniform(-1, 1, 7)
            if actions == "absolute":
                position, rotation = mine.hand()
                there = position + 0.05 * action[:3]
                action = np.concatenate([there, matrix_to_6d(rotation), action[6:]])
            if actions == "delta":  # asking for a goal changes nothing
                mine.goal(action)
            assert mine.step(action) == plain.step(action)
            np.testing.assert_array_equal(mine.state(), plain.state())
    assert can_step(mine)
    for sim in (mine, plain):
        sim.close()


def test_asking_for_a_goal_changes_nothing_in_robosuites_own_step_either() -> None:
    sim, states = Simulator(TASKS["square"]), []
    for ask in (False, True):
        sim.reset(1)
        sim._step = sim._env.step
        for action in np.random.default_rng(1).uniform(-1, 1, (5, 7)):
            if ask:
                sim.goal(action)
            sim.step(action)
        states.append(sim.state())
    np.testing.assert_array_equal(*states)
    sim.close()


@pytest.mark.parametrize("shiny", ["nut", "floor and nut"])
def test_mirrors_on_the_table(shiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nut lies flat below the hand and mirrors: what is seen in it lies, mirrored, below the table."""
    sim = Simulator(TASKS["square"], "full")
    sim.reset(0)
    model = sim._env.sim.model._model
    model.mat_reflectance[:] = 0.0
    nut = model.body("SquareNut_main").id
    for geom in np.flatnonzero(model.geom_bodyid == nut):
        if model.geom_matid[geom] >= 0:
            model.mat_reflectance[model.geom_matid[geom]] = 0.5
    if shiny != "nut":
        model.mat_reflectance[model.geom_matid[model.geom("floor").id]] = 0.5
    state = sim.state()
    at = 1 + model.joint("SquareNut_joint0").qposadr[0]
    pictures = []
    for everything in (False, True):
        if everything:
            monkeypatch.setattr("ddp_cli.sim.renderer.in_view", lambda model, *_, **__: np.ones(model.ngeom, bool))
        for below in (0.1, 0.15):
            state[at : at + 7] = [*(sim.hand()[0] - [0, 0, below]), 1, 0, 0, 0]
            sim.show_state(state)
            pictures.append([sim.image(key) for key in CAMERAS])
    np.testing.assert_array_equal(*np.split(np.array(pictures), 2))
    sim.close()


def test_after_another_model_is_loaded_and_a_state_is_set() -> None:
    sim = Simulator(TASKS["lift"])
    sim.reset(0)
    xml, state = sim.model_xml(), sim.state()
    actions = np.random.default_rng(2).uniform(-1, 1, (8, 7))

    def run() -> np.ndarray:
        sim.load_xml(xml)
        sim.set_state(state)
        for action in actions:
            sim.step(action)
        return sim.state()

    sim.reset(1)
    sim.step(actions[0])
    mine = run()
    sim._stepper = lambda: sim._env.step  # type: ignore[method-assign]
    np.testing.assert_array_equal(mine, run())
    sim.close()


def test_a_described_task_is_stepped_alike_and_another_physics_by_robosuite() -> None:
    sim = Simulator(task_from_json({"name": "door", "env_name": "Door"}))
    sim.reset(0)
    assert can_step(sim)
    states = []
    for step in (sim.step, sim._env.step):
        sim.reset(0)
        for action in np.random.default_rng(3).uniform(-1, 1, (5, 7)):
            step(action)
        states.append(sim.state())
    np.testing.assert_array_equal(*states)
    sim.close()
    sim = Simulator(TASKS["square"])
    sim.reset(0)
    sim._env.lite_physics = False
    assert not can_step(sim)
    before = sim.state()
    sim.step(np.array([0.5, 0, 0, 0, 0, 0, 0]))
    assert sim.state()[0] == pytest.approx(before[0] + 0.05)
    sim.close()


@pytest.mark.parametrize("profile", ["fast", "full"])
@pytest.mark.parametrize("task", TASKS)
def test_what_is_out_of_view_is_not_drawn_and_no_pixel_changes(
    task: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of sample demos; MuJoCo mirrors in one geom only: without the floor it would be the nut of square."""
    sim = Simulator(TASKS[task], profile)
    sim.reset(0)
    with DemoFile(SAMPLES / f"{task}.hdf5") as demos:
        states = np.concatenate([demos.read(name).states[5::11] for name in demos.names[:3]])
    counts, pictures = [], []
    for everything in (False, True):
        if everything:
            monkeypatch.setattr("ddp_cli.sim.renderer.in_view", lambda model, *_, **__: np.ones(model.ngeom, bool))
        for state in states:
            sim.show_state(state)
            pictures.append([sim.image(key) for key in CAMERAS])
        counts.append(sim._renderer._scene.ngeom)  # type: ignore[union-attr]
    np.testing.assert_array_equal(*np.split(np.array(pictures), 2))
    assert counts[0] < 0.8 * counts[1]
    sim.close()
