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


def rotation_angle(a: Array, b: Array) -> float:
    """Angle between two (3, 3) rotations [rad]."""
    return float(np.linalg.norm(matrix_to_rotvec(a.T @ b)))
