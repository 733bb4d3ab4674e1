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
