"""Recorded observations of every demo are compared with the simulator's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.frame_check import Frame, check_frame
from ddp_cli.data.image_faults import describe_fault, psnr
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task

Image = np.ndarray


@pytest.fixture(scope="module")
def sim() -> Simulator:
    return Simulator(get_task("lift"), "full")


@pytest.fixture(scope="module")
def frame(sim: Simulator, lift_demos: Path) -> Frame:
    """One step of a demo with its observations, and the states of its neighbors."""
    with DemoFile(lift_demos) as file:
        demo = file.read("demo_1")
    sim.load_xml(demo.xml)
    sim.set_kinematic_state(demo.states[20])
    obs = {key: value[None] for key, value in (sim.observe("image") | sim.low_dim()).items()}
    around = slice(19, 22)
    return Frame(
        dataclasses.replace(demo, states=demo.states[around], actions=demo.actions[around], intended=None, obs=obs), 1
    )


def with_obs(frame: Frame, key: str, change: Callable[[Image], Image]) -> Frame:
    demo = frame.demo
    return Frame(dataclasses.replace(demo, obs=demo.obs | {key: change(demo.obs[key][0])[None]}), frame.index)


@pytest.mark.slow
def test_observations_of_this_simulator_agree(sim: Simulator, frame: Frame) -> None:
    result = check_frame(sim, frame)
    assert (result.psnr, result.image_faults, result.differing) == (99.0, {}, set())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda x: x[::-1], "agentview_image is upside down"),
        (lambda x: x[:, ::-1], "agentview_image is mirrored"),
        (lambda x: x[::-1, ::-1], "agentview_image is rotated by 180 degrees"),
        (lambda x: x[..., ::-1], "agentview_image is BGR instead of RGB"),
        (lambda x: x[::-1, :, ::-1], "agentview_image is upside down and BGR instead of RGB"),
        (lambda x: 255 - x, "agentview_image differs (PSNR"),
    ],
)
def test_the_fault_of_an_image_is_named(
    sim: Simulator, frame: Frame, change: Callable[[Image], Image], fault: str
) -> None:
    result = check_frame(sim, with_obs(frame, "agentview_image", change))
    assert list(result.image_faults) == ["agentview_image"]
    assert result.image_faults["agentview_image"].startswith(fault)


@pytest.mark.slow
def test_exchanged_cameras_are_named(sim: Simulator, frame: Frame) -> None:
    hand, agent = "robot0_eye_in_hand_image", "agentview_image"
    obs = frame.demo.obs
    exchanged = dataclasses.replace(frame.demo, obs=obs | {hand: obs[agent], agent: obs[hand]})
    result = check_frame(sim, Frame(exchanged, frame.index))
    assert result.image_faults == {
        agent: f"{agent} is of the camera {hand}", hand: f"{hand} is of the camera {agent}",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("index", "step"), [(0, "a later"), (2, "an earlier")])
def test_images_of_another_step_are_noticed(sim: Simulator, frame: Frame, index: int, step: str) -> None:
    result = check_frame(sim, Frame(frame.demo, index))
    assert result.image_faults["agentview_image"] == f"agentview_image is of {step} step"


@pytest.mark.slow
def test_differing_values_are_named(sim: Simulator, frame: Frame) -> None:
    result = check_frame(sim, with_obs(frame, "robot0_eef_quat", lambda x: x[[3, 0, 1, 2]]))
    assert (result.differing, result.image_faults) == ({"robot0_eef_quat"}, {})
    assert check_frame(sim, with_obs(frame, "robot0_eef_pos", lambda x: x + 5e-4)).differing == set()


def test_black_images_are_no_exchanged_cameras() -> None:
    rng = np.random.default_rng(0)
    rendered = {key: rng.integers(0, 256, (8, 8, 3), np.uint8) for key in ("a_image", "b_image")}
    assert describe_fault(np.zeros((8, 8, 3), np.uint8), "a_image", rendered).startswith("a_image differs (PSNR ")


def test_colors_of_a_small_object_are_noticed() -> None:
    """They hardly change the PSNR."""
    rendered = np.full((84, 84, 3), 128, np.uint8)
    rendered[40:44, 40:44] = [200, 30, 30]
    bgr = rendered[..., ::-1]
    assert psnr(rendered, bgr) > 30
    assert describe_fault(bgr, "a_image", {"a_image": rendered}) == "a_image is BGR instead of RGB"
    noise = np.random.default_rng(0).integers(-3, 4, rendered.shape)
    assert describe_fault((rendered + noise).astype(np.uint8), "a_image", {"a_image": rendered}) == ""


def test_psnr_follows_its_definition() -> None:
    gray = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(gray, gray) == 99
    assert psnr(gray, gray + np.uint8(10)) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(np.zeros_like(gray), np.full_like(gray, 255)) == pytest.approx(0)
