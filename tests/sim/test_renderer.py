"""Pixels of the render profiles."""

from __future__ import annotations

import numpy as np
import pytest

from ddp_cli.sim.environment import env_args
from ddp_cli.sim.meshes import CELL_SIZE, coarse_meshes
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import CAMERAS, TASKS

pytestmark = pytest.mark.slow


def test_full_profile_renders_robosuites_own_pixels() -> None:
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
    obs = env._get_observations(force_update=True)
    for key in CAMERAS:
        np.testing.assert_array_equal(sim.image(key), obs[key][::-1], err_msg=key)
    env.close()
    sim.close()


def test_fast_profile_resembles_full_but_differs() -> None:
    images = {}
    for profile in ("full", "fast"):
        sim = Simulator(TASKS["can"], profile)
        sim.reset(2)
        images[profile] = sim.image("agentview_image").astype(float)
        sim.close()
    difference = np.abs(images["full"] - images["fast"]).mean()
    assert 1.0 < difference < 40.0


def test_gl_context_is_reused_for_every_cube_size() -> None:
    """Lift's model changes with the episode; the pixels equal those of a renderer created for it."""
    sim, fresh = Simulator(TASKS["lift"]), Simulator(TASKS["lift"])
    sim.reset(0)
    sim.image("agentview_image")
    sim.reset(1)
    fresh.reset(1)
    np.testing.assert_array_equal(sim.image("robot0_eye_in_hand_image"), fresh.image("robot0_eye_in_hand_image"))
    sim.close()
    fresh.close()


def test_images_are_upright() -> None:
    """The bright table is at the bottom of agentview; the dark arm enters from the top."""
    sim = Simulator(TASKS["square"])
    sim.reset(0)
    rows = sim.image("agentview_image").astype(float).mean((1, 2))
    assert rows[-20:].mean() > rows[:20].mean() + 30
    sim.close()


def test_coarse_profile_resembles_fast_and_does_not_change_physics() -> None:
    sims = {name: Simulator(TASKS["square"], name) for name in ("fast", "coarse")}
    for sim in sims.values():
        sim.reset(3)
        for action in np.random.default_rng(0).uniform(-1, 1, (5, 7)):
            sim.step(action)
        sim.observe("image")
        for action in np.random.default_rng(1).uniform(-1, 1, (5, 7)):
            sim.step(action)
    np.testing.assert_array_equal(sims["coarse"].state(), sims["fast"].state())
    for name in ("mesh_face", "mesh_facenum", "mesh_facenormal"):
        np.testing.assert_array_equal(getattr(sims["coarse"].model, name), getattr(sims["fast"].model, name))
    obs = {name: sim.observe("image") for name, sim in sims.items()}
    agentview, wrist = (
        np.abs(obs["coarse"][key].astype(float) - obs["fast"][key]).mean()
        for key in ("agentview_image", "robot0_eye_in_hand_image")
    )
    assert 0 < agentview < 2, "of 255; other profiles differ by 6 and more"
    assert wrist < 0.1, "meshes close to a camera are not simplified"
    for sim in sims.values():
        sim.close()


def test_simplified_mesh_has_no_holes() -> None:
    """Vertices move by at most the diagonal of a cell, and most faces are removed."""
    sim = Simulator(TASKS["square"], "fast")
    sim.reset(3)
    model = sim.model
    link = next(i for i in range(model.nmesh) if model.mesh(i).name == "robot0_link1_vis")
    first, count = model.mesh_faceadr[link], model.mesh_facenum[link]
    vertices = model.mesh_vert[model.mesh_vertadr[link] :][: model.mesh_vertnum[link]]
    original_centers = vertices[model.mesh_face[first : first + count : 20]].mean(1)
    with coarse_meshes(model):
        coarse_count = model.mesh_facenum[link]
        assert 100 < coarse_count < count / 4
        centers = vertices[model.mesh_face[first : first + coarse_count]].mean(1)
    nearest = np.sqrt(((original_centers[:, None] - centers[None]) ** 2).sum(-1)).min(1)
    assert nearest.max() < 3 * CELL_SIZE
    sim.close()
