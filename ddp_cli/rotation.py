"""Rotations; the only user of scipy. Matrices are (3, 3), rotation vectors axis * angle [rad]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


def rotvec_to_matrix(rotvec: Array) -> Array:
    """(3,) rotation vector [rad] -> (3, 3) matrix."""
    return np.asarray(Rotation.from_rotvec(rotvec).as_matrix())


def matrix_to_rotvec(matrix: Array) -> Array:
    """(3, 3) matrix -> (3,) rotation vector [rad], angle in [0, pi]."""
    return np.asarray(Rotation.from_matrix(matrix).as_rotvec())


def quaternion_to_matrix(quaternion: Array) -> Array:
    """(..., 4) quaternions x, y, z, w -> (..., 3, 3)."""
    return np.asarray(Rotation.from_quat(quaternion).as_matrix())


def rotation_angle(a: Array, b: Array) -> float:
    """Angle between two (3, 3) rotations [rad]."""
    return float(np.linalg.norm(matrix_to_rotvec(a.T @ b)))


def matrix_to_6d(matrix: Array) -> Array:
    """(..., 3, 3) -> (..., 6): the first two rows (Zhou et al. 2019, "On the continuity of rotation
    representations"; rows rather than columns is the field's convention).
    """
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def matrix_from_6d(rows: Array) -> Array:
    """(..., 6), two rows that need not be exactly orthonormal -> (..., 3, 3) rotation, by Gram-Schmidt."""
    a, b = rows[..., :3], rows[..., 3:]
    x = a / np.linalg.norm(a, axis=-1, keepdims=True)
    y = b - (x * b).sum(-1, keepdims=True) * x
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-2)
