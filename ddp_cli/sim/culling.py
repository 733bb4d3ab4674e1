"""Which geoms a camera can see: what is beside its picture need not be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)


def in_view(model: Any, data: Any, camera: int, aspect: float = 1.0) -> NDArray[np.bool_]:
    """Of every geom, whether its box reaches into the view of `camera` (its number); bool (ngeom,).

    A box is out of view if all its corners lie beyond one of the four planes that bound the picture, `aspect`
    times as wide as high. That may keep a geom that is not seen, and never drops one that is.
    """
    corners = model.geom_aabb[:, None, :3] + _CORNERS * model.geom_aabb[:, None, 3:]  # (ngeom, 8, 3)
    world = corners @ data.geom_xmat.reshape(-1, 3, 3).transpose(0, 2, 1) + data.geom_xpos[:, None]
    seen = (world - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)  # the camera looks along -z
    y_edge = -seen[..., 2] * np.tan(np.radians(model.cam_fovy[camera]) / 2)
    x_edge, x, y = y_edge * aspect, seen[..., 0], seen[..., 1]
    beyond = (x > x_edge).all(1) | (-x > x_edge).all(1) | (y > y_edge).all(1) | (-y > y_edge).all(1)
    return ~beyond | (model.geom_rbound == 0)  # planes have no bounds
