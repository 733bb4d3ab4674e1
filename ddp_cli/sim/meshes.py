"""Coarser meshes of the arm: most of the time that a small picture takes goes into vertices that share a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

CELL = 0.01  # [m]; a pixel of agentview is about as wide where the arm is
FAR = ("robot0_", "fixed_mount0_")  # the arm and its mount: no camera sees them from near, as one does the gripper
MANY = 1000  # faces; fewer are not worth it

FACES = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum")


@contextmanager
def coarse_meshes(model: Any) -> Iterator[None]:
    """Inside, meshes of the arm have fewer faces: what is uploaded for drawing there is drawn coarsely from then on.
    Afterwards `model` is as it was, so physics never sees it.
    """
    kept = {name: getattr(model, name).copy() for name in FACES}
    try:
        for mesh in range(model.nmesh):
            if model.mesh(mesh).name.startswith(FAR) and model.mesh_facenum[mesh] > MANY:
                _simplify(model, mesh)
        yield
    finally:
        for name, array in kept.items():
            getattr(model, name)[:] = array


def _simplify(model: Any, mesh: int) -> None:
    """Vertices in one cell of a grid become one of them (Rossignac and Borrel 1993); faces that lost a side go."""
    first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
    cell, chosen = _cells(model.mesh_vert[vertices].astype(np.float64))
    faces = cell[model.mesh_face[first : first + count]]
    turned = (np.argmin(faces, 1)[:, None] + np.arange(3)) % 3  # the same face may begin with any of its corners
    _, once = np.unique(np.take_along_axis(faces, turned, 1), axis=0, return_index=True)
    a, b, c = faces[once].T
    left = np.sort(once[(a != b) & (b != c) & (c != a)])
    rows = slice(first, first + len(left))
    for name in ("mesh_facenormal", "mesh_facetexcoord"):
        array = getattr(model, name)
        array[rows] = array[first + left]
    model.mesh_face[rows] = chosen[faces[left]]
    model.mesh_facenum[mesh] = len(left)


def _cells(vertices: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cell of every vertex (n,), and for each cell the vertex nearest to the mean of those in it."""
    _, cell = np.unique(np.round(vertices / CELL).astype(np.int64), axis=0, return_inverse=True)
    cell = cell.ravel()
    mean = np.stack([np.bincount(cell, axis) for axis in vertices.T], 1) / np.bincount(cell)[:, None]
    nearest = np.lexsort((((vertices - mean[cell]) ** 2).sum(1), cell))
    return cell, nearest[np.searchsorted(cell[nearest], np.arange(len(mean)))]
