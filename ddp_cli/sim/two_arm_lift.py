"""Scripted policy for TwoArmLift: two arms that face each other lift a pot by its handles.

Arm 0 grasps handle 0 and arm 1 handle 1, as in the shaped reward of the environment. Like those of one arm
(scripted_policies.py) the policy is a function of the current scene. The arms are synchronised through the scene, too:
they close their grippers once both are in place, rise while both hold a handle, and the higher hand rises more slowly.

The scene of each arm is in its own frame, the world turned by the orientation of its base: so both arms are at
(BASE_X, 0) and face +x, like the arm of the other tasks, and actions are in this frame. The handle bar, a square rod
of 2 cm, is horizontal along the x axis of the pot; the fingers close across it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ddp_cli.rotation import Array
from ddp_cli.sim.grippers import GRIPPERS
from ddp_cli.sim.motion import CLOSED, OPEN, Z_AXIS, MotionTarget, SceneState, clip_norm, eef_yaw, wrap_angle, yaw_of

FINGERS = replace(GRIPPERS["Panda"], closed=0.015, held=0.045)  # on the bar 0.02 to 0.03
MAX_TURN = 0.7  # the hands turn by 30 to 150 degrees
BAR_OFFSET = 0.005  # from the site of a handle to the centre of its bar, away from the pot
REST_HEIGHT = 0.93  # of the handles while the pot stands on the table
MAX_TILT = 0.25  # of a pot that both arms can grasp
LIFT_HEIGHT = 0.16  # the pot rises by this much; success is 0.10


def observe_two_arm_scene(sim: Any) -> tuple[SceneState, SceneState]:
    """The current scene of each arm of TwoArmLift in its own frame.

    The object is the bar of its handle, with the orientation of the pot; the target is where the bar is once the pot
    has been lifted above the middle of the table.
    """
    env = sim.env
    sites = np.array([env._handle0_xpos, env._handle1_xpos])
    outward = (sites[0] - sites[1]) / np.linalg.norm(sites[0] - sites[1])
    bars = sites + BAR_OFFSET * np.array([outward, -outward])
    pot_rotation = np.array(env.sim.data.body_xmat[env.pot_body_id]).reshape(3, 3)
    pot_offset = np.array([*env.sim.data.body_xpos[env.pot_body_id][:2], 0.0])

    def arm_scene(arm: int) -> SceneState:
        to_arm = sim.base_orientation(arm).T
        position, rotation = sim.eef_pose(arm)
        opening, velocity = sim.gripper_opening(arm)
        target = bars[arm] - pot_offset
        target[2] = REST_HEIGHT + LIFT_HEIGHT
        return SceneState(
            to_arm @ position, to_arm @ rotation, eef_yaw(to_arm @ rotation), opening, velocity,
            to_arm @ bars[arm], to_arm @ pot_rotation, to_arm @ target, FINGERS,
        )  # fmt: skip

    return arm_scene(0), arm_scene(1)


def two_arm_lift_policy(scenes: tuple[SceneState, SceneState]) -> tuple[MotionTarget, MotionTarget]:
    """The motion targets of arm 0 and arm 1."""
    first, second = scenes
    if _is_held(first) and _is_held(second):
        return _raise(first, second), _raise(second, first)
    grasps = [_reach(s) for s in scenes]
    if first.object_rotation[2, 2] < np.cos(MAX_TILT):  # it was dropped by one arm: the other rights it
        upper = int(second.object_pos[2] > first.object_pos[2])
        grasps[1 - upper] = _wait_above(scenes[1 - upper])
    elif any(grasp.gripper == OPEN for grasp in grasps):
        grasps = [_wait_to_close(s, grasp) for s, grasp in zip(scenes, grasps, strict=True)]
    return grasps[0], grasps[1]


def _surrounds_bar(s: SceneState) -> bool:
    """Whether the fingers are on both sides of the bar, provided that they are open."""
    offset = s.object_pos - s.eef_pos
    return bool(np.linalg.norm(offset[:2]) < 0.035 and abs(offset[2]) < 0.018)


def _is_held(s: SceneState) -> bool:
    """Whether the bar is between the fingers, and they do not close further."""
    return _surrounds_bar(s) and s.fingers.closed < s.gripper_opening < s.fingers.held and s.gripper_velocity > -0.05


def _reach(s: SceneState) -> MotionTarget:
    """Move the open gripper around the bar and close it; a held bar is carried to where the pot stands upright."""
    offset, yaw = s.object_pos - s.eef_pos, grasp_yaw(s)
    if _is_held(s):
        upward = s.object_rotation[:, 2]  # axis of the pot: a tilted one is pulled away from the side it leans to
        drop = float(np.clip(REST_HEIGHT - s.object_pos[2], -0.05, 0.05)) * upward[2] ** 2
        upright = np.array([*-0.06 * upward[:2], drop])
        return MotionTarget(_centring(s) + upright, yaw, CLOSED, near_contact=True)
    distance, lateral = float(np.linalg.norm(offset)), float(np.linalg.norm(offset[:2]))
    yaw_error = abs(yaw - s.eef_yaw)
    is_open = s.gripper_opening > s.fingers.ready
    is_closing = s.fingers.closed < s.gripper_opening < s.fingers.wide and s.gripper_velocity < 0.03
    if _surrounds_bar(s) and (is_open or is_closing):  # the fingers would lift the pot if they rose first
        in_place = is_open and distance < 0.014 and yaw_error < 0.12
        return MotionTarget(offset, yaw, CLOSED if in_place or is_closing else OPEN, near_contact=True)
    gap = max(s.fingers.ready - s.gripper_opening, 0.0)
    height = float(np.clip(3.0 * (lateral - 0.006) + 0.3 * (yaw_error - 0.08) + 3.0 * gap, 0.0, 0.09))
    translation = offset + Z_AXIS * height
    if -offset[2] < height - 0.04:  # too low for this lateral distance: rise first
        translation[:2] *= 0.3
    near_contact = bool(-offset[2] < 0.05 and lateral < 0.04)
    return MotionTarget(translation, yaw, OPEN, near_contact, max_turn=MAX_TURN)


def _wait_to_close(s: SceneState, grasp: MotionTarget) -> MotionTarget:
    """`grasp`, with the gripper open unless it carries the handle."""
    in_the_air = _is_held(s) and s.object_pos[2] > REST_HEIGHT + 0.01
    return grasp if in_the_air else replace(grasp, gripper=OPEN)


def _wait_above(s: SceneState) -> MotionTarget:
    """Keep the open gripper clear of the pot, above its handle."""
    offset = np.array([*(s.object_pos - s.eef_pos)[:2], max(s.object_pos[2], REST_HEIGHT) + 0.1 - s.eef_pos[2]])
    if offset[2] > 0.03:
        offset[:2] = 0.0
    return MotionTarget(offset, grasp_yaw(s), OPEN, max_turn=MAX_TURN)


def grasp_yaw(s: SceneState) -> float:
    """Yaw at which the fingers close across the bar of the handle, within [0, pi].

    The pot is placed with 30 to 150 degrees, so this choice between two yaws half a turn apart does not depend on the
    current yaw, and is continuous. A pot that was turned further may need up to 0.2 more.
    """
    middle = float(np.clip(s.eef_yaw, np.pi / 2 - 0.2, np.pi / 2 + 0.2))
    return middle + wrap_angle(yaw_of(s.object_rotation) - middle, np.pi)


def _raise(s: SceneState, other: SceneState) -> MotionTarget:
    """Rise with the handle; the higher hand rises more slowly."""
    height = (s.object_pos[2] + other.object_pos[2]) / 2
    offset = s.object_pos - s.eef_pos + _centring(s)
    offset[2] = np.clip(s.target_pos[2] - height, -0.05, 0.05) + 2.0 * (height - s.object_pos[2])
    return MotionTarget(offset, grasp_yaw(s), CLOSED, near_contact=True)


def _centring(s: SceneState) -> Array:
    """Translation towards the middle of the table, from where both arms reach their handles."""
    return clip_norm(0.3 * np.array([*(s.target_pos - s.object_pos)[:2], 0.0]), 0.02)
