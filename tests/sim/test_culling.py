"""Culling leaves geoms out of the scene without changing a pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SAMPLE_TASKS

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import CAMERAS, TASKS

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[2] / "sample_data"


def disable_culling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddp_cli.sim.renderer.potentially_visible", lambda model, *_, **__: np.ones(model.ngeom, bool))


@pytest.mark.parametrize("profile", ["fast", "full"])
@pytest.mark.parametrize("task", SAMPLE_TASKS)
def test_geoms_out_of_view_are_culled_and_no_pixel_changes(
    task: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of sample demos; MuJoCo mirrors in a single geom: without the floor, that would be the nut of square."""
    sim = Simulator(TASKS[task], profile)
    sim.reset(0)
    import mujoco

    render, geom_counts = mujoco.mjr_render, []

    def count_geoms(viewport: Any, scene: Any, context: Any) -> None:
        geom_counts.append(scene.ngeom)
        render(viewport, scene, context)

    monkeypatch.setattr(mujoco, "mjr_render", count_geoms)
    with DemoFile(SAMPLES / f"{task}.hdf5") as demos:
        states = np.concatenate([demos.read(name).states[5::11] for name in demos.names[:3]])
    images = []
    for culling in (True, False):
        if not culling:
            disable_culling(monkeypatch)
        for state in states:
            sim.set_kinematic_state(state)
            images.append([sim.image(key) for key in CAMERAS])
    np.testing.assert_array_equal(*np.split(np.array(images), 2))
    culled, complete = np.split(np.array(geom_counts), 2)
    assert culled[-1] < 0.8 * complete[-1]
    sim.close()


@pytest.mark.parametrize("reflective", ["nut", "floor and nut"])
def test_reflections_on_the_table_are_kept(reflective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nut lies flat below the gripper and is reflective: what it mirrors would be below the table."""
    sim = Simulator(TASKS["square"], "full")
    sim.reset(0)
    model = sim.model
    model.mat_reflectance[:] = 0.0
    nut = model.body("SquareNut_main").id
    for geom in np.flatnonzero(model.geom_bodyid == nut):
        if model.geom_matid[geom] >= 0:
            model.mat_reflectance[model.geom_matid[geom]] = 0.5
    if reflective != "nut":
        model.mat_reflectance[model.geom_matid[model.geom("floor").id]] = 0.5
    state = sim.state()
    nut_pose = 1 + model.joint("SquareNut_joint0").qposadr[0]
    images = []
    for culling in (True, False):
        if not culling:
            disable_culling(monkeypatch)
        for distance in (0.1, 0.15):
            state[nut_pose : nut_pose + 7] = [*(sim.eef_pose()[0] - [0, 0, distance]), 1, 0, 0, 0]
            sim.set_kinematic_state(state)
            images.append([sim.image(key) for key in CAMERAS])
    np.testing.assert_array_equal(*np.split(np.array(images), 2))
    sim.close()


def test_geoms_at_the_sides_of_wide_images_are_rendered() -> None:
    """The field of view of a camera is that of the height of its image."""
    import mujoco

    from ddp_cli.sim.renderer import Renderer

    model = mujoco.MjModel.from_xml_string(
        """<mujoco><visual><global offwidth="640" offheight="640"/></visual><worldbody><light pos="0 0 3"/>
        <camera name="top" pos="0 0 1" fovy="45"/><geom type="plane" size="0 0 1" rgba=".2 .2 .2 1" group="1"/>
        <body name="box" mocap="true"><geom type="box" size=".05 .05 .05" rgba="1 0 0 1" group="1"/></body>
        </worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    renderer = Renderer(model, "fast")
    for height, width, position in ((96, 192, [0.55, 0, 0.1]), (96, 192, [-0.55, 0, 0.1]), (192, 96, [0, 0.3, 0.1])):
        data.mocap_pos[0] = position
        mujoco.mj_forward(model, data)
        images = [renderer.render(model, data, "top", height, width, cull) for cull in (True, False)]
        np.testing.assert_array_equal(*images)
        assert (images[0][..., 0] > 100).any()
    renderer.close()
