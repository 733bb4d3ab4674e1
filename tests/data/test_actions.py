"""Laws of the action conversions: each pair of directions is an inverse, and batches equal single steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ddp_cli.data.actions import (
    absolute_to_delta,
    axis_angle_to_rotation_6d,
    delta_to_absolute,
    rotation_6d_to_axis_angle,
)
from ddp_cli.rotation import (
    matrix_from_6d,
    matrix_to_6d,
    matrix_to_rotvec,
    quaternion_to_matrix,
    rotation_angle,
    rotvec_to_matrix,
)

NEAR_PI = [np.pi - 1e-2, np.pi - 1e-6, np.pi - 1e-9, np.pi]


def random_axes(count: int, seed: int = 0) -> np.ndarray:
    axes = np.random.default_rng(seed).normal(size=(count, 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def random_rotvecs(count: int, seed: int = 0) -> np.ndarray:
    """Rotation vectors [rad] of angles up to pi."""
    return random_axes(count, seed) * np.random.default_rng(seed).uniform(0, np.pi, (count, 1))


def random_poses(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions [m] (count, 3) and unit quaternions (count, 4)."""
    rng = np.random.default_rng(seed)
    quaternions = rng.normal(size=(count, 4))
    return rng.uniform(-1, 1, (count, 3)), quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)


def absolute_axis_angle(rotvecs: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    positions, grippers = rng.uniform(-1, 1, (len(rotvecs), 3)), rng.uniform(-1, 1, (len(rotvecs), 1))
    return np.concatenate([positions, rotvecs, grippers], axis=1)


# -- rotations ----------------------------------------------------------------------------------------


def test_rotation_6d_is_the_first_two_rows() -> None:
    matrix = rotvec_to_matrix(np.array([0.3, -1.2, 0.5]))
    np.testing.assert_array_equal(matrix_to_6d(matrix), np.concatenate([matrix[0], matrix[1]]))
    np.testing.assert_allclose(matrix_from_6d(matrix_to_6d(matrix)), matrix, atol=1e-12)


def test_gram_schmidt_returns_rotations() -> None:
    matrices = matrix_from_6d(np.random.default_rng(0).normal(size=(20, 6)))
    identity = np.broadcast_to(np.eye(3), (20, 3, 3))
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), identity, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (7, 3), (2, 5, 3)])
def test_rotation_vectors_round_trip_in_any_batch_shape(shape: tuple[int, ...]) -> None:
    rotvecs = random_rotvecs(int(np.prod(shape[:-1]))).reshape(shape)
    matrices = rotvec_to_matrix(rotvecs)
    assert matrices.shape == (*shape, 3)
    np.testing.assert_allclose(matrix_to_rotvec(matrices), rotvecs, atol=1e-12)
    np.testing.assert_allclose(rotation_angle(matrices, np.eye(3)), np.linalg.norm(rotvecs, axis=-1), atol=1e-12)


@pytest.mark.parametrize("angle", NEAR_PI)
def test_rotation_vectors_near_pi_are_the_same_rotation(angle: float) -> None:
    """At pi itself the axis may have either sign."""
    matrices = rotvec_to_matrix(random_axes(50) * angle)
    again = rotvec_to_matrix(matrix_to_rotvec(matrices))
    np.testing.assert_allclose(again, matrices, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(matrix_to_rotvec(matrices), axis=1), angle, atol=1e-7)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (rotvec_to_matrix, random_rotvecs(100)),
        (matrix_to_rotvec, rotvec_to_matrix(np.concatenate([random_rotvecs(96), random_axes(4) * np.pi]))),
        (quaternion_to_matrix, random_poses(100)[1]),
        (matrix_from_6d, np.random.default_rng(0).normal(size=(100, 6))),
    ],
)
def test_batches_equal_single_rotations_bit_for_bit(
    function: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray
) -> None:
    np.testing.assert_array_equal(function(inputs), np.stack([function(x) for x in inputs]))


def test_angles_of_batches_equal_single_angles_bit_for_bit() -> None:
    a, b = rotvec_to_matrix(random_rotvecs(1000, 1)), rotvec_to_matrix(random_rotvecs(1000, 2))
    np.testing.assert_array_equal(rotation_angle(a, b), [rotation_angle(x, y) for x, y in zip(a, b, strict=True)])


# -- delta and absolute -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 200])
def test_absolute_to_delta_inverts_delta_to_absolute(count: int) -> None:
    actions = np.random.default_rng(1).uniform(-1, 1, (count, 7))
    absolute = delta_to_absolute(actions, *random_poses(count))
    assert absolute.shape == (count, 10)
    np.testing.assert_allclose(absolute_to_delta(absolute, *random_poses(count)), actions, atol=1e-12)


@pytest.mark.parametrize("count", [1, 200])
def test_delta_to_absolute_inverts_absolute_to_delta_within_reach(count: int) -> None:
    poses = random_poses(count)
    reachable = delta_to_absolute(np.random.default_rng(2).uniform(-1, 1, (count, 7)), *poses)
    deltas = absolute_to_delta(reachable, *poses)
    assert deltas.shape == (count, 7)
    np.testing.assert_allclose(delta_to_absolute(deltas, *poses), reachable, atol=1e-12)


def test_delta_actions_of_goals_out_of_reach_are_clipped() -> None:
    position, quaternion = random_poses(1)
    goal = delta_to_absolute(np.array([[3.0, -3.0, 0.5, 0, 0, 0, 1.0]]), position, quaternion)
    delta = absolute_to_delta(goal, position, quaternion)
    np.testing.assert_allclose(delta, [[1.0, -1.0, 0.5, 0, 0, 0, 1.0]], atol=1e-9)


def test_a_delta_action_is_5_cm_and_half_a_radian_per_unit() -> None:
    """The rotation is multiplied from the left: its axis is in the base frame, not in that of the end effector."""
    position, quaternion = random_poses(1)
    start, goal = (
        delta_to_absolute(np.array([action], np.float64), position, quaternion)[0]
        for action in ([0] * 7, [1, 0, -1, 0, 0, 1, -1])
    )
    np.testing.assert_allclose(goal[:3] - start[:3], [0.05, 0, -0.05], atol=1e-12)
    rotation = matrix_from_6d(goal[3:9]) @ matrix_from_6d(start[3:9]).T
    np.testing.assert_allclose(matrix_to_rotvec(rotation), [0, 0, 0.5], atol=1e-12)
    assert goal[9] == -1


# -- axis-angle and rotation-6d -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 200])
def test_axis_angle_and_rotation_6d_are_inverses(count: int) -> None:
    actions = absolute_axis_angle(random_rotvecs(count))
    stored = axis_angle_to_rotation_6d(actions)
    assert stored.shape == (count, 10)
    np.testing.assert_allclose(rotation_6d_to_axis_angle(stored), actions, atol=1e-12)
    np.testing.assert_allclose(axis_angle_to_rotation_6d(rotation_6d_to_axis_angle(stored)), stored, atol=1e-12)
    np.testing.assert_array_equal(stored[:, [0, 1, 2, 9]], actions[:, [0, 1, 2, 6]])


@pytest.mark.parametrize("angle", NEAR_PI)
def test_rotation_6d_survives_axis_angle_near_pi(angle: float) -> None:
    stored = axis_angle_to_rotation_6d(absolute_axis_angle(random_axes(50) * angle))
    np.testing.assert_allclose(axis_angle_to_rotation_6d(rotation_6d_to_axis_angle(stored)), stored, atol=1e-7)


def test_a_rotation_vector_beyond_pi_becomes_the_equivalent_one() -> None:
    actions = absolute_axis_angle(random_axes(50) * 4.0)
    again = rotation_6d_to_axis_angle(axis_angle_to_rotation_6d(actions))
    np.testing.assert_allclose(again[:, 3:6], random_axes(50) * (4.0 - 2 * np.pi), atol=1e-12)
