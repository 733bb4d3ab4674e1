"""Simplified meshes of the arm: at 84x84 pixels, most rendering time goes into vertices that share a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

CELL_SIZE = 0.01  # [m], about the width of an agentview pixel at the distance of the arm
SIMPLIFIED_PREFIXES = ("robot0_", "fixed_mount0_")  # arm and mount; the gripper is close to the wrist camera
MIN_FACES = 1000  # meshes with fewer faces are not simplified

FACE_ARRAYS = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum")


@contextmanager
def coarse_meshes(model: Any) -> Iterator[None]:
    """Reduce the faces of the arm's meshes in `model` while a render context uploads them.

    The context keeps the simplified meshes; `model` is restored on exit, so physics is not affected.
    """
    original = {name: getattr(model, name).copy() for name in FACE_ARRAYS}
    try:
        for mesh in range(model.nmesh):
            if model.mesh(mesh).name.startswith(SIMPLIFIED_PREFIXES) and model.mesh_facenum[mesh] > MIN_FACES:
                _simplify(model, mesh)
        yield
    finally:
        for name, array in original.items():
            getattr(model, name)[:] = array


def _simplify(model: Any, mesh: int) -> None:
    """Vertex clustering (Rossignac and Borrel 1993): vertices in a grid cell are merged, degenerate faces removed."""
    first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
    cell, representative = _cluster(model.mesh_vert[vertices].astype(np.float64))
    faces = cell[model.mesh_face[first : first + count]]
    rotation = (np.argmin(faces, 1)[:, None] + np.arange(3)) % 3  # the same face may start at any of its corners
    _, unique = np.unique(np.take_along_axis(faces, rotation, 1), axis=0, return_index=True)
    a, b, c = faces[unique].T
    remaining = np.sort(unique[(a != b) & (b != c) & (c != a)])
    rows = slice(first, first + len(remaining))
    for name in ("mesh_facenormal", "mesh_facetexcoord"):
        array = getattr(model, name)
        array[rows] = array[first + remaining]
    model.mesh_face[rows] = representative[faces[remaining]]
    model.mesh_facenum[mesh] = len(remaining)


def _cluster(vertices: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cell index of every vertex (n,), and for each cell the vertex nearest to the mean of its vertices."""
    _, cell = np.unique(np.round(vertices / CELL_SIZE).astype(np.int64), axis=0, return_inverse=True)
    cell = cell.ravel()
    mean = np.stack([np.bincount(cell, axis) for axis in vertices.T], 1) / np.bincount(cell)[:, None]
    nearest = np.lexsort((((vertices - mean[cell]) ** 2).sum(1), cell))
    return cell, nearest[np.searchsorted(cell[nearest], np.arange(len(mean)))]
