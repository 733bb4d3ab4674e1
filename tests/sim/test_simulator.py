from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ddp_cli.errors import SimulatorError
from ddp_cli.sim.meshes import CELL, coarse_meshes
from ddp_cli.sim.simulator import Simulator, env_args
from ddp_cli.tasks import CAMERAS, TASKS


@pytest.fixture(scope="module")
def square() -> Iterator[Simulator]:
    sim = Simulator(TASKS["square"])
    yield sim
    sim.close()


@pytest.mark.parametrize("task", TASKS)
def test_widths_of_states_and_observations_are_those_of_the_task(task: str) -> None:
    spec = TASKS[task]
    sim = Simulator(spec)
    sim.reset(0)
    assert len(sim.state()) == spec.state_dim
    seen = sim.observe("state")
    assert {k: len(v) for k, v in seen.items()} == spec.vectors("state")
    np.testing.assert_allclose(seen["object"][:3], sim.object()[0], atol=1e-6)
    assert not sim.success()
    sim.close()


def test_a_seed_is_one_start_whatever_came_before(square: Simulator) -> None:
    square.reset(7)
    first = square.state()
    square.step(np.ones(7))
    square.reset(8)
    assert not np.array_equal(square.state(), first)
    square.reset(7)
    np.testing.assert_array_equal(square.state(), first)
    other = Simulator(TASKS["square"])
    other.reset(7)
    np.testing.assert_array_equal(other.state(), first)
    other.close()


@pytest.mark.parametrize("task", TASKS)
def test_observations_are_functions_of_the_state(task: str) -> None:
    sim = Simulator(TASKS[task])
    sim.reset(3)
    for action in np.random.default_rng(0).uniform(-1, 1, (6, 7)):
        sim.step(action)
    state, seen = sim.state(), sim.low_dim()
    for action in np.random.default_rng(1).uniform(-1, 1, (6, 7)):
        sim.step(action)
        sim.low_dim()
    sim.show_state(state)
    for key, value in sim.low_dim().items():
        np.testing.assert_array_equal(value, seen[key], err_msg=key)
    sim.close()


def test_looking_changes_nothing(square: Simulator) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7))

    def run(look: bool) -> np.ndarray:
        square.reset(3)
        for action in actions:
            square.step(action)
            if look:
                square.observe("image")
                square.low_dim()
        return square.state()

    np.testing.assert_array_equal(run(look=False), run(look=True))


def test_a_step_is_robosuites_own(square: Simulator) -> None:
    """The refreshed kinematics do not reach the dynamics: the plain environment goes the same way."""
    actions = np.random.default_rng(1).uniform(-1, 1, (5, 7))
    square.reset(4)
    for action in actions:
        square.step(action)
    mine = square.state()
    square.reset(4)
    for action in actions:
        square._env.step(action)
    np.testing.assert_array_equal(mine, square.state())


def test_after_a_state_is_set_a_zero_action_stays_there(square: Simulator) -> None:
    square.reset(5)
    for _ in range(10):
        square.step(np.array([0.5, 0.5, -0.5, 0, 0, 0, -1]))
    away = square.state()
    square.reset(6)  # the controllers now hold goals of another pose
    square.set_state(away)
    before = square.hand()[0]
    for _ in range(3):
        square.step(np.zeros(7))
    assert np.linalg.norm(square.hand()[0] - before) < 0.02


def test_full_profile_draws_robosuites_own_pixels() -> None:
    import robosuite

    kwargs = env_args(TASKS["square"])["env_kwargs"] | {
        "has_offscreen_renderer": True, "use_camera_obs": True, "camera_names": list(CAMERAS.values()),
        "camera_heights": 84, "camera_widths": 84,
    }  # fmt: skip
    env = robosuite.make("NutAssemblySquare", **kwargs, hard_reset=False)
    sim = Simulator(TASKS["square"], "full")
    sim.reset(11)
    env.reset()
    env.sim.set_state_from_flattened(sim.state())
    env.sim.forward()
    seen = env._get_observations(force_update=True)
    for key in CAMERAS:
        np.testing.assert_array_equal(sim.image(key), seen[key][::-1], err_msg=key)
    env.close()
    sim.close()


def test_fast_profile_is_close_to_full_but_not_the_same() -> None:
    pictures = {}
    for profile in ("full", "fast"):
        sim = Simulator(TASKS["can"], profile)
        sim.reset(2)
        pictures[profile] = sim.image("agentview_image").astype(float)
        sim.close()
    difference = np.abs(pictures["full"] - pictures["fast"]).mean()
    assert 1.0 < difference < 40.0


def test_a_context_serves_every_cube_size() -> None:
    """Lift's model changes with the episode; the pixels are those of a renderer made for it."""
    sim = Simulator(TASKS["lift"])
    sim.reset(0)
    sim.image("agentview_image")
    sim.reset(1)
    reused = sim.image("robot0_eye_in_hand_image")
    sim._close_renderer()
    np.testing.assert_array_equal(sim.image("robot0_eye_in_hand_image"), reused)
    sim.close()


def test_pictures_are_upright(square: Simulator) -> None:
    """The table fills the bottom of the agent's view, the dark arm hangs in from the top."""
    square.reset(0)
    picture = square.image("agentview_image").astype(float).mean(-1)
    assert picture[-20:].mean() > picture[:20].mean() + 30


def test_a_state_of_another_size_is_refused(square: Simulator) -> None:
    with pytest.raises(SimulatorError, match="32 values does not fit NutAssemblySquare"):
        square.set_state(np.zeros(32))


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(SimulatorError, match="full, fast"):
        Simulator(TASKS["lift"], "ultra")


def test_coarse_pictures_are_close_and_physics_is_the_same() -> None:
    task = TASKS["square"]
    sims = {name: Simulator(task, name) for name in ("fast", "coarse")}
    for sim in sims.values():
        sim.reset(3)
        for action in np.random.default_rng(0).uniform(-1, 1, (5, 7)):
            sim.step(action)
        sim.observe("image")
        for action in np.random.default_rng(1).uniform(-1, 1, (5, 7)):
            sim.step(action)
    np.testing.assert_array_equal(sims["coarse"].state(), sims["fast"].state())
    arrays = [sim._env.sim.model._model for sim in sims.values()]
    for name in ("mesh_face", "mesh_facenum", "mesh_facenormal"):
        np.testing.assert_array_equal(getattr(arrays[1], name), getattr(arrays[0], name))
    seen = {name: sim.observe("image") for name, sim in sims.items()}
    arm, hand = (
        np.abs(seen["coarse"][key].astype(float) - seen["fast"][key]).mean()
        for key in ("agentview_image", "robot0_eye_in_hand_image")
    )
    assert 0 < arm < 2, "of 255; other profiles differ by 6 and more"
    assert hand < 0.1, "what is near a camera is not simplified"


def test_a_simplified_mesh_keeps_its_place() -> None:
    """No vertex moves by more than a cell's diagonal, and most faces go."""
    sim = Simulator(TASKS["square"], "fast")
    sim.reset(3)
    model = sim._env.sim.model._model
    link = next(i for i in range(model.nmesh) if model.mesh(i).name == "robot0_link1_vis")
    first, count = model.mesh_faceadr[link], model.mesh_facenum[link]
    vertices = model.mesh_vert[model.mesh_vertadr[link] :][: model.mesh_vertnum[link]]
    whole = vertices[model.mesh_face[first : first + count : 20]].mean(1)
    with coarse_meshes(model):
        left = model.mesh_facenum[link]
        assert 100 < left < count / 4
        centres = vertices[model.mesh_face[first : first + left]].mean(1)
    nearest = np.sqrt(((whole[:, None] - centres[None]) ** 2).sum(-1)).min(1)
    assert nearest.max() < 3 * CELL, "no hole in it"
