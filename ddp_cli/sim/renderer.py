"""Offscreen rendering of a MuJoCo model."""

from __future__ import annotations

import atexit
import hashlib
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ddp_cli.choices import RenderProfile
from ddp_cli.errors import UnknownNameError
from ddp_cli.sim.culling import potentially_visible
from ddp_cli.sim.gl_backend import check_gl_variables, rendering_error
from ddp_cli.sim.meshes import coarse_meshes

Image = NDArray[np.uint8]

MAX_IMAGE_SIZE = 640  # [pixels], size of the offscreen framebuffer
MAX_SCENE_GEOMS = 10_000
HIDDEN_GROUP = 0  # geom group of robosuite's collision geometry, not rendered


def check_render_profile(name: str) -> None:
    """UnknownNameError unless `name` is a render profile."""
    if name not in get_args(RenderProfile):
        raise UnknownNameError("render profile", name, get_args(RenderProfile))


@dataclass(frozen=True)
class PinholeCamera:
    """A pinhole camera with square images."""

    position: NDArray[np.float64]  # [m] (3,), world frame
    axes: NDArray[np.float64]  # (3, 3), columns: right, up, backward
    fovy: float  # [rad], vertical field of view

    def project(self, points: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        """World points [m] (n, 3) -> pixel coordinates (n, 2), x right and y down, in an image of `size` pixels.

        The origin is the upper left corner: the first pixel spans 0 to 1. nan for points behind the camera or outside
        the image.
        """
        x, y, z = ((points - self.position) @ self.axes).T
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = np.stack([x, -y], 1) / -z[:, None] * (size / 2 / np.tan(self.fovy / 2)) + size / 2
        is_visible = (z < 0) & ((pixels >= 0) & (pixels <= size)).all(1)
        return np.where(is_visible[:, None], pixels, np.nan)


def pinhole_camera(model: Any, data: Any, name: str) -> PinholeCamera:
    """The camera `name` of a model, after mj_camlight."""
    i = model.camera(name).id
    return PinholeCamera(
        np.array(data.cam_xpos[i]), np.array(data.cam_xmat[i]).reshape(3, 3), float(np.deg2rad(model.cam_fovy[i]))
    )


class Renderer:
    """Renders models that share meshes and textures through one GL context.

    Creating a context uploads 350,000 vertices (half a second). Lift's model changes every episode, but only in the
    size of a box, which is not uploaded, so the context is reused for the next model.
    """

    def __init__(self, model: Any, profile: str) -> None:
        import mujoco

        self._mujoco, self._profile = mujoco, profile
        self._assets = _asset_hash(model)
        model.vis.global_.offwidth = model.vis.global_.offheight = MAX_IMAGE_SIZE
        if profile != "full":
            model.vis.quality.offsamples = 0
        check_gl_variables()
        try:
            with warnings.catch_warnings(), coarse_meshes(model) if profile == "coarse" else nullcontext():
                warnings.simplefilter("ignore")  # glfw warns where there is no display, before an error follows
                mujoco.GLContext._context = None  # its destructor reads it, also where the constructor failed
                self._gl = mujoco.GLContext(MAX_IMAGE_SIZE, MAX_IMAGE_SIZE)
                self._gl.make_current()
                self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except Exception as e:  # GL libraries raise errors of any type
            raise rendering_error(e) from e
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        # mujoco's own clean-up at exit logs an error for GL contexts that are still open.
        atexit.register(_close_at_exit, weakref.ref(self))
        self._option = mujoco.MjvOption()
        self._option.geomgroup[HIDDEN_GROUP] = 0
        self._scene_model: Any = None

    def is_compatible(self, model: Any) -> bool:
        """Whether `model` has the meshes and textures of this renderer's context."""
        return model is self._scene_model or _asset_hash(model) == self._assets

    def render(self, model: Any, data: Any, camera: str, height: int, width: int, cull: bool = True) -> Image:
        """The upright image of `camera`, uint8 (height, width, 3). Without `cull`, geoms that cannot be seen are
        rendered, too.
        """
        mujoco = self._mujoco
        if model is not self._scene_model:
            self._scene = mujoco.MjvScene(model, maxgeom=MAX_SCENE_GEOMS)
            self._scene_model = model
        cam = mujoco.MjvCamera()
        cam.type = mujoco.mjtCamera.mjCAMERA_FIXED
        cam.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        groups = model.geom_group.copy()
        full = self._profile == "full"
        if cull and not (full and model.light_castshadow.any()):  # a geom outside the view can cast a shadow into it
            rendered = np.array(self._option.geomgroup)[np.clip(groups, 0, 5)] > 0
            visible = potentially_visible(model, data, cam.fixedcamid, width / height, rendered, reflections=full)
            model.geom_group[~visible] = HIDDEN_GROUP
        mujoco.mjv_updateScene(model, data, self._option, None, cam, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        model.geom_group[:] = groups
        if not full:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._gl.make_current()
        image = np.empty((height, width, 3), np.uint8)
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return np.ascontiguousarray(image[::-1])  # the first row of OpenGL is at the bottom

    def close(self) -> None:
        """Release the GL context."""
        self._context.free()
        self._gl.free()


def _close_at_exit(reference: weakref.ref[Renderer]) -> None:
    renderer = reference()
    if renderer is not None:
        renderer.close()


def _asset_hash(model: Any) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for array in (model.mesh_vert, model.mesh_face, model.tex_data, model.tex_height, model.geom_dataid):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
