"""View frustum and occlusion culling: geoms that a camera cannot see need not be rendered.

All tests are conservative: they may keep a geom that is not visible, and never drop one that is. Shadows are not
considered. A geom is represented by its bounding box, as corners (ngeom, 8, 3) in the world frame [m].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PLANE, BOX = 0, 6  # values of mujoco's mjtGeom
HEIGHT_TOLERANCE = 1e-6  # [m]

_BOX_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_IMAGE_CORNERS = np.array([(x, y, -1) for x in (-1, 1) for y in (-1, 1)], dtype=np.float64)  # cameras look along -z

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def potentially_visible(model: Any, data: Any, camera: int, aspect: float, rendered: Mask, reflections: bool) -> Mask:
    """Which geoms may be visible in an image of `camera` (its id); bool (ngeom,).

    `aspect`: width of the image / its height. `rendered` (ngeom,): geoms in a rendered group. With `reflections`, geoms
    with a visible mirror image are kept.
    """
    if model.cam_sensorsize[camera].any():  # a camera with lens parameters; robosuite has none
        return np.ones(model.ngeom, np.bool_)
    axes, positions = data.geom_xmat.reshape(-1, 3, 3), data.geom_xpos
    corners = model.geom_aabb[:, None, :3] + _BOX_CORNERS * model.geom_aabb[:, None, 3:]
    corners = corners @ axes.transpose(0, 2, 1) + positions[:, None]
    planes = model.geom_rbound == 0  # unbounded; a horizontal plane is below a table if its height is
    corners[planes, :, 2] = np.where(axes[planes, 2, 2] == 1.0, positions[planes, 2], 1e3)[:, None]
    cull_camera = _CullingCamera(model, data, camera, aspect, rendered)
    visible = (cull_camera.in_frustum(corners) | planes) & ~cull_camera.is_occluded(corners)
    if not reflections:
        return visible
    mirrors = _is_reflective(model) & rendered
    for mirror in np.flatnonzero(mirrors & visible):
        # MuJoCo uses the first reflective geom that it renders, so a visible mirror keeps all mirrors, and the planes
        # reflected in them.
        is_box, normal = model.geom_type[mirror] == BOX, axes[mirror, :, 2]
        surface = positions[mirror] + is_box * model.geom_size[mirror, 2] * normal
        reflected = corners - 2 * ((corners - surface) @ normal)[..., None] * normal
        is_floor = not is_box and cull_camera.is_below_tables(surface)
        visible |= (
            planes | mirrors | (cull_camera.in_frustum(reflected) & ~(cull_camera.is_occluded(reflected) & is_floor))
        )
    return visible


class _CullingCamera:
    """A camera, and the opaque horizontal boxes below it ("tables"), which may occlude what is below their top."""

    def __init__(self, model: Any, data: Any, camera: int, aspect: float, rendered: Mask) -> None:
        self.position, self.axes = data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3)
        half_height = np.tan(np.radians(model.cam_fovy[camera]) / 2)
        self.half_extent = half_height * np.array([aspect, 1.0])  # x, y, of the image plane at distance 1
        self.near = model.vis.map.znear * model.stat.extent  # near clipping plane [m]
        axes, tops = data.geom_xmat.reshape(-1, 3, 3), data.geom_xpos[:, 2] + model.geom_size[:, 2]
        is_opaque = np.append(model.mat_rgba[:, 3], 1.0)[model.geom_matid] * model.geom_rgba[:, 3] == 1
        is_horizontal = (np.abs(axes[:, 2, 2] - 1.0) < 1e-9) & (tops < self.position[2])
        boxes = np.flatnonzero(rendered & is_opaque & is_horizontal & (model.geom_type == BOX))
        self.tables = [(tops[i], data.geom_xpos[i], axes[i], model.geom_size[i, :2] * 0.999) for i in boxes]

    def is_below_tables(self, point: Array) -> bool:
        """Whether `point` [m] (3,) is lower than the tops of all tables."""
        return all(point[2] < top for top, *_ in self.tables)

    def in_frustum(self, corners: Array) -> Mask:
        """Boxes that are not entirely beyond one of the four side planes of the view frustum."""
        local = (corners - self.position) @ self.axes
        limit, position = -local[..., 2:] * self.half_extent, local[..., :2]
        return ~((position > limit).all(1) | (-position > limit).all(1)).any(-1)

    def is_occluded(self, corners: Array) -> Mask:
        """Boxes below a table that either fills the image or intersects the lines of sight to all their corners."""
        occluded = np.zeros(len(corners), np.bool_)
        image_rays = (_IMAGE_CORNERS * (*self.half_extent, 1.0)) @ self.axes.T
        rays = corners - self.position
        for top, *table in self.tables:
            drop = top - self.position[2]
            is_below = (corners[..., 2] < top - HEIGHT_TOLERANCE).all(1)
            if (image_rays[:, 2] < 0).all() and self._on_table(image_rays * (drop / image_rays[:, 2:]), *table).all():
                occluded |= is_below
            elif is_below.any():
                hits = rays[is_below] * (drop / rays[is_below][..., 2:])  # at the height of the table
                occluded[is_below] |= self._on_table(hits, *table).all(1)
        return occluded

    def _on_table(self, points: Array, position: Array, axes: Array, half_size: Array) -> Mask:
        """Points [m] (..., 3), relative to the camera, that are on a table and beyond the near clipping plane."""
        on_table = (points + self.position - position) @ axes
        return (np.abs(on_table[..., :2]) < half_size).all(-1) & (points @ self.axes[:, 2] < -self.near)


def _is_reflective(model: Any) -> Mask:
    reflective = np.append(model.mat_reflectance, 0.0)[model.geom_matid] > 0  # geom_matid is -1 without a material
    return reflective & np.isin(model.geom_type, (PLANE, BOX))
