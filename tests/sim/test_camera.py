"""Projection of world points into camera images."""

from __future__ import annotations

import numpy as np
import pytest

from ddp_cli.sim.renderer import PinholeCamera
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task

SPHERE = 2  # value of mujoco's mjtGeom
MAGENTA = (1.0, 0.0, 1.0, 1.0)


def center_of_magenta(image: np.ndarray) -> np.ndarray:
    """Mean position of the magenta pixels, light or dark; the first pixel spans 0 to 1."""
    red, green, blue = image.astype(int).transpose(2, 0, 1)
    rows, columns = np.nonzero((red > 60) & (blue > 60) & (green < 0.4 * np.minimum(red, blue)))
    assert len(rows) > 10
    return np.array([columns.mean(), rows.mean()]) + 0.5


@pytest.mark.parametrize("size", [512, 170])
def test_projected_point_is_where_it_is_rendered(size: int) -> None:
    """The cube is replaced by a small magenta sphere, moved to positions all over the view of each camera."""
    sim = Simulator(get_task("lift"))
    sim.reset(0)
    model, data = sim.model, sim.data
    cube = model.body("cube_main").id
    for geom in np.nonzero(model.geom_bodyid == cube)[0]:
        model.geom_type[geom], model.geom_matid[geom] = SPHERE, -1
        model.geom_size[geom], model.geom_rgba[geom] = 0.012, MAGENTA
    cube_position = int(model.jnt_qposadr[model.body_jntadr[cube]])
    near_gripper = sim.eef_pose()[0] + np.array([[0.06, 0.03, -0.08], [0.05, -0.05, -0.06], [0.1, 0.0, -0.12]])
    positions = {
        "agentview_image": np.array([[0.1, 0.2, 0.9], [0.1, -0.12, 1.0], [-0.1, 0.15, 0.95], [0.2, 0.0, 0.83]]),
        "robot0_eye_in_hand_image": near_gripper,
    }
    for key, points in positions.items():
        for point, expected in zip(points, sim.camera(key).project(points, size), strict=True):
            assert np.isfinite(expected).all()
            data.qpos[cube_position : cube_position + 3] = point
            sim.refresh_kinematics()
            center = center_of_magenta(sim.image(key, size))
            assert np.abs(center - expected).max() < 1.0, (key, point, center, expected)
    sim.close()


def test_points_behind_the_camera_or_outside_the_image_are_nan() -> None:
    camera = PinholeCamera(np.zeros(3), np.eye(3), np.pi / 2)  # looks along -z with a field of view of 90 degrees
    points = np.array([[0, 0, -1.0], [0.5, 0.5, -1], [0, 0, 1], [0, 0, 0], [2, 0, -1]])
    pixels = camera.project(points, 100)
    np.testing.assert_allclose(pixels[:2], [[50, 50], [75, 25]])  # y points up, rows go down
    assert np.isnan(pixels[2:]).all()
