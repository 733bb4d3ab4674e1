"""Where things are in a picture, where a chunk takes the hand, and what is drawn of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from ddp_cli.evaluation.path_prediction import predicted_path
from ddp_cli.sim.renderer import PinholeCamera
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import CONTROL_HZ, get_task
from ddp_cli.video.overlay import DARK, GREEN, draw_frame, draw_path, draw_text

SPHERE = 2  # mujoco's number of the shape
MAGENTA = (1.0, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    sim = Simulator(dataclasses.replace(get_task("lift"), horizon=16))
    sim.reset(0)
    yield sim
    sim.close()


def centre_of_magenta(picture: np.ndarray) -> np.ndarray:
    """Of the pixels of that hue, however light or dark; the first pixel reaches from 0 to 1."""
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    rows, columns = np.nonzero((red > 60) & (blue > 60) & (green < 0.4 * np.minimum(red, blue)))
    assert len(rows) > 10
    return np.array([columns.mean(), rows.mean()]) + 0.5


@pytest.mark.parametrize("size", [512, 170])
def test_a_projected_point_lies_where_it_is_drawn(sim: Simulator, size: int) -> None:
    """The cube becomes a small magenta ball, put at places all over what each camera sees."""
    model, data = sim._env.sim.model._model, sim._env.sim.data._data
    cube = model.body("cube_main").id
    for geom in np.nonzero(model.geom_bodyid == cube)[0]:
        model.geom_type[geom], model.geom_matid[geom] = SPHERE, -1
        model.geom_size[geom], model.geom_rgba[geom] = 0.012, MAGENTA
    joint = int(model.jnt_qposadr[model.body_jntadr[cube]])
    hand = sim.hand()[0]
    near_hand = hand + np.array([[0.06, 0.03, -0.08], [0.05, -0.05, -0.06], [0.1, 0.0, -0.12]])
    places = {
        "agentview_image": np.array([[0.1, 0.2, 0.9], [0.1, -0.12, 1.0], [-0.1, 0.15, 0.95], [0.2, 0.0, 0.83]]),
        "robot0_eye_in_hand_image": near_hand,
    }
    for key, points in places.items():
        for point, expected in zip(points, sim.view(key).project(points, size), strict=True):
            assert np.isfinite(expected).all()
            data.qpos[joint : joint + 3] = point
            sim._refresh()
            found = centre_of_magenta(sim.image(key, size))
            assert np.abs(found - expected).max() < 1.0, (key, point, found, expected)
    sim.reset(0)


def test_what_is_behind_or_outside_is_left_out() -> None:
    view = PinholeCamera(np.zeros(3), np.eye(3), np.pi / 2)  # looks along -z, as wide as it is far
    points = np.array([[0, 0, -1.0], [0.5, 0.5, -1], [0, 0, 1], [0, 0, 0], [2, 0, -1]])
    pixels = view.project(points, 100)
    np.testing.assert_allclose(pixels[:2], [[50, 50], [75, 25]])  # y is up, rows go down
    assert np.isnan(pixels[2:]).all()


@pytest.mark.parametrize("actions", ["delta", "absolute"])
def test_the_hand_goes_where_the_path_says(actions: str) -> None:
    sim = Simulator(get_task("lift"), "fast", actions)
    sim.reset(1)
    before, rng = sim.hand()[0], np.random.default_rng(0)
    for _ in range(3):  # a chunk from rest, then two of a hand that moves
        here, rotation = sim.hand()
        velocity, push = (here - before) * CONTROL_HZ, rng.uniform(-1, 1, 3) * (1, 1, 0.3)
        if actions == "delta":
            chunk = np.tile(np.concatenate([push, np.zeros(3), [-1.0]]), (8, 1))
        else:
            goals = here + np.linspace(0.1, 1, 8)[:, None] * push * 0.12
            chunk = np.hstack([goals, np.tile(rotation[:2].ravel(), (8, 1)), -np.ones((8, 1))])
        path, walked = predicted_path(here, velocity, chunk, sim.base()), [here]
        for action in chunk:
            before = sim.hand()[0]
            sim.step(action)
            walked.append(sim.hand()[0])
        errors = np.linalg.norm(path - walked, axis=1)
        assert np.linalg.norm(walked[-1] - here) > 0.03
        assert errors.max() < 0.02  # [m], when it turns round at full speed; the goals are up to 30 cm off
    sim.close()


def test_deltas_are_turned_with_the_base() -> None:
    chunk, turn = np.array([[1.0, 0, 0, 0, 0, 0, 0]]), np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    moved = predicted_path(np.zeros(3), np.zeros(3), chunk, turn)[-1]
    assert moved[1] > 0.005
    assert moved[[0, 2]].tolist() == [0, 0]


def test_a_path_is_drawn_where_it_is_and_dimmer_where_it_was() -> None:
    grey = np.full((256, 256, 3), 128, np.uint8)
    pixels = np.stack([np.linspace(40, 216, 9), np.full(9, 100.0)], 1)
    drawn = draw_path(grey, pixels, 4).astype(int)
    changed = np.abs(drawn - 128).max(2)
    rows, columns = np.nonzero(changed)
    assert (rows.min() > 85) & (rows.max() < 115)
    assert (columns.min() > 30) & (columns.max() < 226)
    assert changed[100, 45:125].mean() < 0.6 * changed[100, 130:210].mean()
    assert changed[100, 45:125].min() > 5
    left, right = drawn[100, 50], drawn[100, 214]
    assert left[2] < left[0]  # yellow
    assert right[2] > right[0]  # violet
    assert (grey == 128).all()


def test_a_path_skips_what_is_not_seen() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    pixels = np.stack([np.linspace(10, 120, 8), np.full(8, 60.0)], 1)
    pixels[3:5] = np.nan
    changed = (draw_path(grey, pixels, 0) != 128).any(2)
    assert changed[60, 12:35].all()
    assert not changed[:, 50:80].any()
    assert changed[60, 95:118].all()
    assert (draw_path(grey, np.full((8, 2), np.nan), 0) == grey).all()
    corner = draw_path(grey, np.array([[0.0, 0.0], [128.0, 128.0]]), 0)  # on the edge
    assert (corner[64, 64] != 128).any()


@pytest.mark.parametrize("size", [512, 170])
@pytest.mark.parametrize("shade", [0, 255])
def test_text_can_be_read_on_light_and_dark(size: int, shade: int) -> None:
    picture = np.full((size, size, 3), shade, np.uint8)
    drawn = draw_text(picture, [("step 123/400, chunk 1234 ms", DARK), ("success at step 123", GREEN)])
    rows, columns = np.nonzero((drawn != shade).any(2))
    assert columns.max() < size - 4  # it fits
    assert rows.min() > size / 2
    plates = drawn[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.min() + 60].min(2)
    assert np.percentile(plates, 30) < 130  # something dark, whatever is below
    assert 0.01 < (plates > 235).mean() < 0.3  # with white letters on it
    assert (picture == shade).all()


def test_a_frame_leaves_the_middle() -> None:
    framed = draw_frame(np.zeros((32, 32, 3), np.uint8), GREEN, 3)
    assert (framed[0] == GREEN).all()
    assert (framed[:, -3:] == GREEN).all()
    assert (framed[3:-3, 3:-3] == 0).all()
