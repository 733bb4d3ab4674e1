"""Which geoms a camera can see: what is out of its view, or behind a table, need not be drawn.

All tests are on the safe side: they may keep a geom that is not seen, and never drop one that is. What casts
shadows is another matter. A geom is known by the box around it: corners (ngeom, 8, 3) in the world [m].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PLANE, BOX = 0, 6  # mujoco's mjtGeom
TINY = 1e-6  # [m]

_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_PICTURE = np.array([(x, y, -1) for x in (-1, 1) for y in (-1, 1)], dtype=np.float64)  # it looks along -z

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def in_view(model: Any, data: Any, camera: int, drawn: Mask, reflections: bool) -> Mask:
    """Of every geom, whether it may be seen in the square picture of `camera` (its number); bool (ngeom,).

    `drawn` (ngeom,) says what is drawn at all. With `reflections` a geom is kept for its mirror image as well.
    """
    if model.cam_sensorsize[camera].any():  # no camera of robosuite's: one with a lens of its own
        return np.ones(model.ngeom, np.bool_)
    axes, positions = data.geom_xmat.reshape(-1, 3, 3), data.geom_xpos
    crop_offsets = model.geom_aabb[:, None, :3] + _CORNERS * model.geom_aabb[:, None, 3:]
    crop_offsets = crop_offsets @ axes.transpose(0, 2, 1) + positions[:, None]
    planes = model.geom_rbound == 0  # without bounds; a level one is below a table if its height is
    crop_offsets[planes, :, 2] = np.where(axes[planes, 2, 2] == 1.0, positions[planes, 2], 1e3)[:, None]
    eye = _CullingCamera(model, data, camera, drawn)
    seen = (eye.reach(crop_offsets) | planes) & ~eye.hidden(crop_offsets)
    if not reflections:
        return seen
    mirrors = _mirrors(model) & drawn
    for mirror in np.flatnonzero(mirrors & seen):
        # MuJoCo takes the first mirror that it draws, so one that is seen keeps them all, and the planes in them.
        box, normal = model.geom_type[mirror] == BOX, axes[mirror, :, 2]
        surface = positions[mirror] + box * model.geom_size[mirror, 2] * normal
        image = crop_offsets - 2 * ((crop_offsets - surface) @ normal)[..., None] * normal
        below = not box and eye.is_below_tables(surface)
        seen |= planes | mirrors | (eye.reach(image) & ~(eye.hidden(image) & below))
    return seen


class _CullingCamera:
    """A camera, and the opaque level boxes below it: what is below the top of one may be hidden by it."""

    def __init__(self, model: Any, data: Any, camera: int, drawn: Mask) -> None:
        self.position, self.axes = data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3)
        self.half = np.tan(np.radians(model.cam_fovy[camera]) / 2)
        self.near = model.vis.map.znear * model.stat.extent  # what is nearer is cut open
        axes, tops = data.geom_xmat.reshape(-1, 3, 3), data.geom_xpos[:, 2] + model.geom_size[:, 2]
        opaque = np.append(model.mat_rgba[:, 3], 1.0)[model.geom_matid] * model.geom_rgba[:, 3] == 1
        level = (np.abs(axes[:, 2, 2] - 1.0) < 1e-9) & (tops < self.position[2])
        boxes = np.flatnonzero(drawn & opaque & level & (model.geom_type == BOX))
        self.tables = [(tops[i], data.geom_xpos[i], axes[i], model.geom_size[i, :2] * 0.999) for i in boxes]

    def is_below_tables(self, point: Array) -> bool:
        return all(point[2] < top for top, *_ in self.tables)

    def reach(self, crop_offsets: Array) -> Mask:
        """Which boxes lie beyond none of the four planes that bound the picture."""
        seen = (crop_offsets - self.position) @ self.axes
        edge, x, y = -seen[..., 2] * self.half, seen[..., 0], seen[..., 1]
        return ~((x > edge).all(1) | (-x > edge).all(1) | (y > edge).all(1) | (-y > edge).all(1))

    def hidden(self, crop_offsets: Array) -> Mask:
        """Which boxes are below a table that fills the picture, or that all lines of sight to them meet first."""
        found = np.zeros(len(crop_offsets), np.bool_)
        picture = (_PICTURE * (self.half, self.half, 1.0)) @ self.axes.T  # lines of sight to its corners
        sights = crop_offsets - self.position
        for top, *table in self.tables:
            drop = top - self.position[2]
            below = (crop_offsets[..., 2] < top - TINY).all(1)
            if (picture[:, 2] < 0).all() and self._meets(picture * (drop / picture[:, 2:]), *table).all():
                found |= below
            elif below.any():
                found[below] |= self._meets(sights[below] * (drop / sights[below][..., 2:]), *table).all(1)
        return found

    def _meets(self, points: Array, position: Array, axes: Array, half: Array) -> Mask:
        """Which `points` [m] (..., 3), relative to the eye, lie on a table, and not so near that it is cut open."""
        on_table = (points + self.position - position) @ axes
        return (np.abs(on_table[..., :2]) < half).all(-1) & (points @ self.axes[:, 2] < -self.near)


def _mirrors(model: Any) -> Mask:
    shiny = np.append(model.mat_reflectance, 0.0)[model.geom_matid] > 0  # without a material the number is -1
    return shiny & np.isin(model.geom_type, (PLANE, BOX))
