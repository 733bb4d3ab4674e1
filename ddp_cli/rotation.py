"""Rotations, by scipy. All functions take batches.

Shapes: matrices (..., 3, 3), rotation vectors (..., 3) as axis * angle [rad], quaternions (..., 4) as x, y, z, w,
rotation-6d (..., 6).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


def rotvec_to_matrix(rotvec: Array) -> Array:
    """(..., 3) rotation vectors [rad] -> (..., 3, 3) matrices."""
    # scipy before 1.17 takes a single batch dimension.
    return np.asarray(Rotation.from_rotvec(rotvec.reshape(-1, 3)).as_matrix()).reshape(*rotvec.shape, 3)


def matrix_to_rotvec(matrix: Array) -> Array:
    """(..., 3, 3) matrices -> (..., 3) rotation vectors [rad], angle in [0, pi]."""
    return np.asarray(Rotation.from_matrix(matrix.reshape(-1, 3, 3)).as_rotvec()).reshape(matrix.shape[:-1])


def quaternion_to_matrix(quaternion: Array) -> Array:
    """(..., 4) quaternions -> (..., 3, 3) matrices."""
    matrices = np.asarray(Rotation.from_quat(quaternion.reshape(-1, 4)).as_matrix())
    return matrices.reshape(*quaternion.shape[:-1], 3, 3)


def rotation_angle(a: Array, b: Array) -> Array:
    """Angles (...,) between the rotations `a` and `b`, (..., 3, 3) each [rad], in [0, pi]."""
    rotvec = matrix_to_rotvec(np.swapaxes(a, -1, -2) @ b)
    return np.sqrt((rotvec[..., None, :] @ rotvec[..., :, None])[..., 0, 0])


def matrix_to_6d(matrix: Array) -> Array:
    """(..., 3, 3) matrices -> (..., 6): the first two rows (Zhou et al. 2019, "On the continuity of rotation
    representations"; rows rather than columns, as in the published diffusion policies).
    """
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def matrix_from_6d(rows: Array) -> Array:
    """(..., 6) -> (..., 3, 3) matrices by Gram-Schmidt; the two rows need not be orthonormal."""
    a, b = rows[..., :3], rows[..., 3:]
    x = a / np.linalg.norm(a, axis=-1, keepdims=True)
    y = b - (x * b).sum(-1, keepdims=True) * x
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-2)
