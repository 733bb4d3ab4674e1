"""Which geoms a camera can see: what is out of its view, or below a table that fills it, need not be drawn.

All tests are on the safe side: they may keep a geom that is not seen, and never drop one that is. What casts
shadows is another matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PLANE, BOX = 0, 6  # mujoco's mjtGeom

_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_EDGES = np.array([(x, y) for x in (-1, 1) for y in (-1, 1)], dtype=np.float64)

Array = NDArray[np.float64]


def in_view(model: Any, data: Any, camera: int, drawn: NDArray[np.bool_], reflections: bool) -> NDArray[np.bool_]:
    """Of every geom, whether it may be seen in the square picture of `camera` (its number); bool (ngeom,).

    `drawn` (ngeom,) says what is drawn at all. With `reflections` a geom is kept for its mirror image as well.
    """
    corners = model.geom_aabb[:, None, :3] + _CORNERS * model.geom_aabb[:, None, 3:]  # (ngeom, 8, 3)
    world = corners @ _axes(data.geom_xmat).transpose(0, 2, 1) + data.geom_xpos[:, None]
    unbounded = model.geom_rbound == 0  # planes
    floor = _floor(model, data, camera, drawn) - 1e-6  # the table itself stays
    above = np.where(unbounded, data.geom_xpos[:, 2] > floor, (world[..., 2] > floor).any(1))
    level = _axes(data.geom_xmat)[:, 2, 2] == 1.0
    above |= unbounded & ~level
    seen = _reach(model, data, camera, world) | unbounded
    if reflections:
        for mirror in np.flatnonzero(_mirrors(model) & drawn & seen & above):
            normal = _axes(data.geom_xmat)[mirror, :, 2]
            surface = data.geom_xpos[mirror] + (model.geom_type[mirror] == BOX) * model.geom_size[mirror, 2] * normal
            height = (world - surface) @ normal
            image = world - 2 * height[..., None] * normal
            shown = _reach(model, data, camera, image)
            seen, above = seen | shown, above | shown
    return seen & above


def _axes(matrices: Array) -> Array:
    return matrices.reshape(-1, 3, 3)


def _reach(model: Any, data: Any, camera: int, corners: Array) -> NDArray[np.bool_]:
    """Whether boxes with these corners (n, 8, 3) lie beyond none of the four planes that bound the picture."""
    seen = (corners - data.cam_xpos[camera]) @ _axes(data.cam_xmat)[camera]  # the camera looks along -z
    edge = -seen[..., 2] * np.tan(np.radians(model.cam_fovy[camera]) / 2)
    x, y = seen[..., 0], seen[..., 1]
    return ~((x > edge).all(1) | (-x > edge).all(1) | (y > edge).all(1) | (-y > edge).all(1))


def _floor(model: Any, data: Any, camera: int, drawn: NDArray[np.bool_]) -> float:
    """The height [m] below which nothing is seen: the top of an opaque level box that fills the picture."""
    half = np.tan(np.radians(model.cam_fovy[camera]) / 2)
    rays = np.c_[_EDGES * half, -np.ones(4)] @ _axes(data.cam_xmat)[camera].T  # the picture's corners
    position, lowest = data.cam_xpos[camera], -np.inf
    if (rays[:, 2] >= 0).any():
        return lowest
    opaque = np.append(model.mat_rgba[:, 3], 1.0)[model.geom_matid] * model.geom_rgba[:, 3] == 1
    level = np.abs(_axes(data.geom_xmat)[:, 2, 2] - 1.0) < 1e-9
    for box in np.flatnonzero(drawn & opaque & level & (model.geom_type == BOX)):
        top = data.geom_xpos[box, 2] + model.geom_size[box, 2]
        depth = (top - position[2]) / rays[:, 2]  # also the distance along the axis of view
        hits = (position + depth[:, None] * rays - data.geom_xpos[box]) @ _axes(data.geom_xmat)[box]
        inside = (np.abs(hits[:, :2]) < model.geom_size[box, :2] * 0.999).all()
        if inside and depth.min() > model.vis.map.znear * model.stat.extent:  # nearer, it is cut open
            lowest = max(lowest, top)
    return lowest


def _mirrors(model: Any) -> NDArray[np.bool_]:
    shiny = np.append(model.mat_reflectance, 0.0)[model.geom_matid] > 0  # without a material the number is -1
    return shiny & np.isin(model.geom_type, (PLANE, BOX))
