"""Conversions between the representations of actions.

delta            (n, 7)   translation (3), axis-angle rotation (3), gripper (1), each in [-1, 1]; base frame
absolute         (n, 10)  goal position [m] (3), rotation-6d (6), gripper (1); world frame
absolute, axis-angle
                 (n, 7)   goal position [m] (3), axis-angle [rad] (3), gripper (1); world frame, as robosuite and
                          robomimic record absolute actions

A delta action sets the goal relative to the current end-effector pose: at 1.0, DELTA_METRES and DELTA_RADIANS away, the
rotation multiplied from the left. The directions of base and world frame agree for the built-in tasks.
All functions return float64. n: steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.robots import ABSOLUTE_PARTS, DELTA_METRES, DELTA_RADIANS, delta_parts
from ddp_cli.rotation import (
    Array,
    matrix_from_6d,
    matrix_to_6d,
    matrix_to_rotvec,
    quaternion_to_matrix,
    rotvec_to_matrix,
)
from ddp_cli.schema import ActionPart, action_slices

AnyFloat = NDArray[np.floating[Any]]

DELTA_PARTS = delta_parts()

GRIP_SITE_IN_EEF = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""Orientation of the Panda's grip site, which actions refer to, in the body whose quaternion is observed."""


def delta_to_absolute(actions: AnyFloat, eef_pos: AnyFloat, eef_quat: AnyFloat) -> Array:
    """Delta actions (n, 7) -> absolute actions (n, 10).

    `eef_pos` (n, 3) [m] and `eef_quat` (n, 4: x, y, z, w) are the observed end-effector poses before each action.
    """
    actions, position, rotation = actions.astype(np.float64), eef_pos.astype(np.float64), _grip_site_rotation(eef_quat)
    goal_position = position + DELTA_METRES * actions[:, :3]
    goal_rotation = rotvec_to_matrix(DELTA_RADIANS * actions[:, 3:6]) @ rotation
    return np.concatenate([goal_position, matrix_to_6d(goal_rotation), actions[:, 6:]], axis=1)


def absolute_to_delta(actions: AnyFloat, eef_pos: AnyFloat, eef_quat: AnyFloat) -> Array:
    """Absolute actions (n, 10) -> delta actions (n, 7), clipped to [-1, 1]: a single step does not reach goals beyond.

    `eef_pos` (n, 3) [m] and `eef_quat` (n, 4: x, y, z, w) are the observed end-effector poses before each action.
    """
    actions, position, rotation = actions.astype(np.float64), eef_pos.astype(np.float64), _grip_site_rotation(eef_quat)
    translation = (actions[:, :3] - position) / DELTA_METRES
    rotation_offset = matrix_from_6d(actions[:, 3:9]) @ rotation.transpose(0, 2, 1)
    rotvec = matrix_to_rotvec(rotation_offset) / DELTA_RADIANS
    return np.concatenate([translation, rotvec, actions[:, 9:]], axis=1).clip(-1, 1)


def axis_angle_to_rotation_6d(actions: AnyFloat, parts: Sequence[ActionPart] = DELTA_PARTS) -> Array:
    """Absolute actions with axis-angle rotations, (n, 7) for one arm -> with rotation-6d, (n, 10). `parts` are those of
    delta actions, which have the same layout.
    """
    actions = actions.astype(np.float64)
    columns = [
        matrix_to_6d(rotvec_to_matrix(actions[:, x])) if part.rotation == "axis-angle" else actions[:, x]
        for part, x in zip(parts, action_slices(parts), strict=True)
    ]
    return np.concatenate(columns, axis=1)


def rotation_6d_to_axis_angle(actions: AnyFloat, parts: Sequence[ActionPart] = ABSOLUTE_PARTS) -> Array:
    """Absolute actions of `parts` with rotation-6d, (n, 10) for one arm -> with axis-angle rotations, (n, 7), angle in
    [0, pi].
    """
    actions = actions.astype(np.float64)
    columns = [
        matrix_to_rotvec(matrix_from_6d(actions[:, x])) if part.rotation == "rotation-6d" else actions[:, x]
        for part, x in zip(parts, action_slices(parts), strict=True)
    ]
    return np.concatenate(columns, axis=1)


def to_store_actions(actions: AnyFloat, convention: str, parts: Sequence[ActionPart]) -> Array:
    """Recorded actions (n, width of the delta `parts`) as a store holds them: absolute ones with rotation-6d, others as
    the controllers clip them.
    """
    is_absolute = convention == "absolute"
    return axis_angle_to_rotation_6d(actions, parts) if is_absolute else clip_to_limits(actions, parts)


def clip_to_limits(actions: AnyFloat, parts: Sequence[ActionPart]) -> Array:
    """Actions (n, Da) as the controllers of robosuite clip them: to the limits of `parts`."""
    low, high = (
        np.array([sign * np.inf if x is None else x for part in parts for x in bounds(part) or [None] * part.width])
        for sign, bounds in ((-1, lambda part: part.low), (1, lambda part: part.high))
    )
    return actions.astype(np.float64).clip(low, high)


def _grip_site_rotation(eef_quat: AnyFloat) -> Array:
    """Observed end-effector quaternions (n, 4) -> orientations of the grip site (n, 3, 3)."""
    return quaternion_to_matrix(eef_quat.astype(np.float64)) @ GRIP_SITE_IN_EEF
