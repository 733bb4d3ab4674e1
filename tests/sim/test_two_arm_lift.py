"""The policy of two arms is a function of both scenes, which synchronises the arms."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ddp_cli.rotation import rotvec_to_matrix
from ddp_cli.sim.motion import CLOSED, DOWN, OPEN, SceneState
from ddp_cli.sim.two_arm_lift import (
    FINGERS,
    LIFT_HEIGHT,
    REST_HEIGHT,
    grasp_yaw,
    observe_two_arm_scene,
    two_arm_lift_policy,
)

WIDE_OPEN, ON_BAR = 0.079, 0.021  # [m], measured openings


def arm_scene(
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    opening: float = WIDE_OPEN,
    bar_height: float = REST_HEIGHT,
    tilt: float = 0.0,
    pot_yaw: float = np.pi / 2,
    eef_yaw: float = np.pi / 2,
) -> SceneState:
    """An arm whose end effector is at `offset` from the bar of its handle, 43 cm in front of its base."""
    bar = np.array([-0.13, 0.0, bar_height])
    pot = rotvec_to_matrix(np.array([0.0, 0.0, pot_yaw])) @ rotvec_to_matrix(np.array([tilt, 0.0, 0.0]))
    rotation = rotvec_to_matrix(np.array([0.0, 0.0, eef_yaw])) @ DOWN
    target = np.array([*bar[:2], REST_HEIGHT + LIFT_HEIGHT])
    return SceneState(bar + offset, rotation, eef_yaw, opening, 0.0, bar, pot, target, FINGERS)


def test_grippers_close_when_both_hands_are_in_place() -> None:
    in_place, on_the_way = arm_scene(), arm_scene((0.05, 0.02, 0.06))
    assert [target.gripper for target in two_arm_lift_policy((in_place, in_place))] == [CLOSED, CLOSED]
    for scenes in ((in_place, on_the_way), (on_the_way, in_place)):
        assert [target.gripper for target in two_arm_lift_policy(scenes)] == [OPEN, OPEN]


def test_grippers_that_are_closing_continue() -> None:
    closing = arm_scene(opening=0.05)
    assert [target.gripper for target in two_arm_lift_policy((closing, arm_scene(opening=ON_BAR)))] == [CLOSED, CLOSED]


def test_both_hands_rise_together_and_the_higher_one_more_slowly() -> None:
    low, high = arm_scene(opening=ON_BAR, bar_height=0.95), arm_scene(opening=ON_BAR, bar_height=0.96)
    targets = two_arm_lift_policy((low, high))
    assert [target.gripper for target in targets] == [CLOSED, CLOSED]
    assert targets[0].translation[2] > targets[1].translation[2] > 0


def test_one_hand_alone_does_not_lift() -> None:
    away = arm_scene((0.0, 0.0, 0.08))
    on_table, _ = two_arm_lift_policy((arm_scene(opening=ON_BAR), away))
    in_the_air, _ = two_arm_lift_policy((arm_scene(opening=ON_BAR, bar_height=1.0), away))
    assert on_table.gripper == OPEN
    assert in_the_air.gripper == CLOSED
    assert in_the_air.translation[2] < 0


def test_a_tilted_pot_is_righted_at_its_upper_handle_while_the_other_hand_keeps_clear() -> None:
    upper, lower = arm_scene(bar_height=1.05, tilt=0.8), arm_scene((0.0, 0.0, 0.02), bar_height=0.83, tilt=0.8)
    grasping, waiting = two_arm_lift_policy((upper, lower))
    assert (grasping.gripper, waiting.gripper) == (CLOSED, OPEN)
    assert waiting.translation[2] > 0.03
    righting, _ = two_arm_lift_policy((arm_scene(opening=ON_BAR, bar_height=1.05, tilt=0.8), lower))
    assert righting.gripper == CLOSED
    assert righting.translation[:2] @ upper.object_rotation[:2, 2] < 0  # away from the side it leans to
    assert righting.translation[2] < 0


def test_open_fingers_around_the_bar_do_not_rise() -> None:
    """They would take the pot with them."""
    target, _ = two_arm_lift_policy((arm_scene((0.03, 0.0, -0.005)), arm_scene()))
    np.testing.assert_allclose(target.translation, [-0.03, 0.0, 0.005], atol=1e-12)


def test_a_gripper_that_closed_beside_the_bar_rises_and_opens() -> None:
    target, _ = two_arm_lift_policy((arm_scene((0.0, 0.0, 0.02), opening=0.001), arm_scene()))
    assert target.gripper == OPEN
    assert target.translation[2] > 0.03


def test_grasp_yaw_is_continuous_and_the_same_from_every_yaw_of_the_hand() -> None:
    """For all poses in which the pot is placed; a choice that jumps would be hard to imitate."""
    pot_yaws = np.pi / 2 + np.linspace(-np.pi / 3, np.pi / 3, 50)
    for turned in (0.0, np.pi):  # the second arm sees the pot from the other side
        yaws = [
            [grasp_yaw(arm_scene(pot_yaw=pot_yaw + turned, eef_yaw=eef_yaw)) for pot_yaw in pot_yaws]
            for eef_yaw in (0.0, 1.5, 3.0)
        ]
        np.testing.assert_allclose(yaws, [pot_yaws] * 3)


def test_a_symmetric_scene_looks_the_same_to_both_arms() -> None:
    """The second arm is the first one turned by half a turn around the middle of the table."""
    turned = rotvec_to_matrix(np.array([0.0, 0.0, np.pi]))
    base = rotvec_to_matrix(np.array([0.0, 0.0, np.pi / 2]))
    pot = rotvec_to_matrix(np.array([0.0, 0.0, 2.5]))
    handle = pot @ [0.0, 0.155, 0.0] + [0.0, 0.0, 0.93]
    position, rotation = np.array([0.05, -0.1, 1.0]), base @ DOWN
    env = SimpleNamespace(_handle0_xpos=handle, _handle1_xpos=turned @ handle, pot_body_id=0)
    env.sim = SimpleNamespace(data=SimpleNamespace(body_xpos=np.array([[0.0, 0.0, 0.87]]), body_xmat=pot.reshape(1, 9)))
    sim: Any = SimpleNamespace(
        env=env,
        base_orientation=lambda arm: turned @ base if arm else base,
        eef_pose=lambda arm: (turned @ position, turned @ rotation) if arm else (position, rotation),
        gripper_opening=lambda arm: (WIDE_OPEN, 0.0),
    )
    first, second = observe_two_arm_scene(sim)
    np.testing.assert_allclose(first.eef_pos, [-0.1, -0.05, 1.0])  # 46 cm in front of the base, 5 cm to its right
    assert first.eef_yaw == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(np.linalg.norm(first.object_pos[:2]), 0.16)
    assert first.target_pos[2] == pytest.approx(REST_HEIGHT + LIFT_HEIGHT)
    for name in ("eef_pos", "eef_rotation", "object_pos", "target_pos", "eef_yaw"):
        np.testing.assert_allclose(getattr(second, name), getattr(first, name), atol=1e-12)
    assert grasp_yaw(first) == pytest.approx(grasp_yaw(second))
