"""The cameras of a task: their images, without the geoms that they cannot see where that changes no pixel."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_cli.sim.renderer import Image, Renderer, check_render_profile
from ddp_cli.tasks import Task

COMPARED_IMAGES = 5
"""Images of each camera that are compared with and without culling, in tasks that are not built in."""


class Cameras:
    """The cameras of `task`, rendered with the profile `profile`. UnknownNameError for an unknown profile."""

    def __init__(self, task: Task, profile: str) -> None:
        check_render_profile(profile)
        self._cameras, self._profile = task.schema.cameras, profile
        self._names = task.robosuite.cameras
        # Geoms that cannot be seen are not rendered. Tests prove of built-in tasks that no pixel changes.
        self._culling = dict.fromkeys(self._cameras, True)
        self._to_compare = dict.fromkeys(self._cameras, 0 if task.is_variant else COMPARED_IMAGES)
        self._renderer: Renderer | None = None

    def image(self, model: Any, data: Any, key: str, size: int | None = None, cull: bool = True) -> Image:
        """The upright image of the camera with image key `key`, uint8 (height, width, 3), or (size, size, 3).

        Without `cull`, geoms that cannot be seen are rendered, too. `model` may differ from call to call.
        """
        camera = self._cameras[key]
        height, width = (camera.height, camera.width) if size is None else (size, size)
        if self._renderer is None or not self._renderer.is_compatible(model):
            self.close()
            self._renderer = Renderer(model, self._profile)
        renderer, name = self._renderer, self._names[key]

        def render(cull: bool) -> Image:
            return renderer.render(model, data, name, height, width, cull)

        cull = cull and self._culling[key]
        image = render(cull)
        if cull and self._to_compare[key]:
            self._to_compare[key] -= 1
            self._culling[key] = np.array_equal(image, full := render(False))
            return full
        return image

    def culls(self, key: str) -> bool:
        """Whether geoms that the camera `key` cannot see are left out of its images, as far as they were compared."""
        return self._culling[key]

    def close(self) -> None:
        """Release the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
