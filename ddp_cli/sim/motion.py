"""Motions of one arm, from which scripted policies are made: scene, motion target, action.

Angles [rad], lengths [m]. The base of the arm is at x = BASE_X and faces +x. The yaw of the end effector is 0 when its
fingers open along y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddp_cli.robots import DELTA_METRES, DELTA_RADIANS
from ddp_cli.rotation import Array, matrix_to_rotvec, rotvec_to_matrix
from ddp_cli.sim.grippers import GRIPPERS, GripperOpenings

OPEN, CLOSED = -1.0, 1.0
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # gripper pointing down, yaw 0
BASE_X = -0.56  # the arm's vertical axis is at (BASE_X, 0)
YAW_RANGE = (-1.85, 3.35)  # limits of joint 7 for a gripper that points down
Z_AXIS = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class SceneState:
    """What a scripted policy observes; positions (3,), rotations (3, 3)."""

    eef_pos: Array
    eef_rotation: Array
    eef_yaw: float
    gripper_opening: float
    """Distance between the fingers [m]."""
    gripper_velocity: float
    """Rate of change of `gripper_opening` [m/s]."""
    object_pos: Array
    object_rotation: Array
    target_pos: Array
    fingers: GripperOpenings = GRIPPERS["Panda"]

    def is_grasped(self, point: Array, tolerance: float = 0.035) -> bool:
        """Whether the fingers are closed around something at rest, and `point` is within `tolerance` of the grip."""
        is_holding = (
            self.fingers.closed < self.gripper_opening < self.fingers.held and abs(self.gripper_velocity) < 0.03
        )
        return is_holding and bool(np.linalg.norm(point - self.eef_pos) < tolerance)


@dataclass(frozen=True)
class MotionTarget:
    """Where to move: `translation` of the end effector [m], its `yaw` (unwrapped), gripper OPEN or CLOSED."""

    translation: Array
    yaw: float
    gripper: float
    near_contact: bool = False
    """Disturbances are reduced."""
    max_speed: float = 1.0
    """Limit of the translation action, as a fraction of the controller's maximum."""
    max_turn: float = 0.4
    """Limit of the rotation action, likewise."""


def target_to_action(s: SceneState, target: MotionTarget) -> Array:
    """The delta action (7,) towards `target`: proportional control with limited speed."""
    yaw = s.eef_yaw + float(np.clip(target.yaw - s.eef_yaw, -1.0, 1.0))
    # Far from the base a vertical gripper is out of reach: tilt the fingers outward.
    radius = np.array([s.eef_pos[0] - BASE_X, s.eef_pos[1], 0.0])
    distance = float(np.linalg.norm(radius))
    tilt = -0.3 * ramp(distance, 0.66, 0.80) * np.cross(Z_AXIS, radius / distance)
    orientation = rotvec_to_matrix(tilt) @ rotvec_to_matrix(yaw * Z_AXIS) @ DOWN
    # A stretched arm that has to retract and tilt at once does neither: retract first, with a larger gain.
    inward = -float(target.translation @ radius) / distance
    stretched = ramp(distance, 0.77, 0.79) if inward > 0.0 else 0.0
    translation = clip_norm(
        1.5 * (target.translation - 2.0 * stretched * inward * radius / distance) / DELTA_METRES, target.max_speed
    )
    retracting = stretched * ramp(inward, 0.002, 0.005)
    rotation = clip_norm(
        1.2 * matrix_to_rotvec(orientation @ s.eef_rotation.T) / DELTA_RADIANS, target.max_turn * (1.0 - retracting)
    )
    return np.concatenate([translation, rotation, [target.gripper]])


def yaw_of(rotation: Array) -> float:
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def eef_yaw(rotation: Array) -> float:
    """Yaw of an end effector with the orientation `rotation`, unwrapped around the middle of YAW_RANGE."""
    middle = sum(YAW_RANGE) / 2
    return middle + wrap_angle(float(np.arctan2(-rotation[0, 0], rotation[1, 0])) - middle)


def wrap_angle(angle: float, period: float = 2 * np.pi) -> float:
    return float((angle + period / 2) % period - period / 2)


def ramp(x: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, linear in between."""
    return float(np.clip((x - low) / (high - low), 0.0, 1.0))


def clip_norm(v: Array, limit: float) -> Array:
    norm = float(np.linalg.norm(v))
    return v if norm <= limit else v * (limit / norm)
