"""Pictures of a MuJoCo model, without a window."""

from __future__ import annotations

import atexit
import ctypes.util
import hashlib
import os
import sys
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import SimulatorError, close_match
from ddp_cli.sim.culling import in_view
from ddp_cli.sim.meshes import coarse_meshes

Image = NDArray[np.uint8]

RENDER_PROFILES = ("full", "fast", "coarse")
"""full: the pixels of robosuite's own camera observations. fast: no shadows, reflections or
multisampling. coarse: besides, the arm is of fewer faces. The pixels of a name are frozen; other pixels
get another name."""


MAX_PICTURE = 640  # [pixels], the largest picture a renderer draws

HIDDEN_GROUP = 0  # of geoms: collision geometry in robosuite, not drawn


def choose_gl_backend() -> str:
    """Sets MUJOCO_GL to a back end this machine can load (egl, then osmesa) and returns it.

    Must run before mujoco is imported. A value set by the user is kept.
    """
    if not os.environ.get("MUJOCO_GL") and sys.platform == "linux":
        if ctypes.util.find_library("EGL"):
            os.environ["MUJOCO_GL"] = "egl"
        elif ctypes.util.find_library("OSMesa"):
            os.environ["MUJOCO_GL"] = "osmesa"
    return os.environ.get("MUJOCO_GL", "")


def check_profile(name: str) -> None:
    """SimulatorError unless `name` is a render profile."""
    if name not in RENDER_PROFILES:
        close = close_match(name, RENDER_PROFILES)
        raise SimulatorError(f"unknown render profile '{name}'{close}", f"Valid: {', '.join(RENDER_PROFILES)}.")


@dataclass(frozen=True)
class PinholeCamera:
    """A pinhole camera that draws square pictures."""

    position: NDArray[np.float64]  # [m] (3,), world frame
    axes: NDArray[np.float64]  # (3, 3), columns: to the right, up, backward
    fovy: float  # [rad], over the whole height

    def project(self, points: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        """Places [m] (n, 3) of the world -> (n, 2) across and down in a picture of `size` pixels, from its upper
        left corner (the first pixel reaches from 0 to 1); nan for what is behind the camera or outside.
        """
        x, y, z = ((points - self.position) @ self.axes).T
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = np.stack([x, -y], 1) / -z[:, None] * (size / 2 / np.tan(self.fovy / 2)) + size / 2
        seen = (z < 0) & ((pixels >= 0) & (pixels <= size)).all(1)
        return np.where(seen[:, None], pixels, np.nan)


def camera_view(model: Any, data: Any, camera: str) -> PinholeCamera:
    """The view of a model's camera, after mj_camlight."""
    at = model.camera(camera).id
    return PinholeCamera(
        np.array(data.cam_xpos[at]), np.array(data.cam_xmat[at]).reshape(3, 3), float(np.deg2rad(model.cam_fovy[at]))
    )


class Renderer:
    """Draws models that share their meshes and textures through one GL context.

    Making a context uploads 350,000 vertices (half a second); Lift's model changes every episode, but
    only in the size of a box, which is not uploaded. So the context outlives the model.
    """

    def __init__(self, model: Any, profile: str) -> None:
        import mujoco

        self._mujoco, self._profile = mujoco, profile
        self._assets = _asset_hash(model)
        model.vis.global_.offwidth = model.vis.global_.offheight = MAX_PICTURE
        if profile != "full":
            model.vis.quality.offsamples = 0
        try:
            self._gl = mujoco.GLContext(MAX_PICTURE, MAX_PICTURE)
            self._gl.make_current()
            with coarse_meshes(model) if profile == "coarse" else nullcontext():
                self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except Exception as e:  # GL libraries raise what they like
            raise SimulatorError(
                f"no rendering with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {str(e) or type(e).__name__}.",
                "Run `ddp doctor`.",
            ) from e
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        # A GL context that outlives mujoco's own clean-up at the end of the process complains there.
        atexit.register(_close_at_exit, weakref.ref(self))
        self._option = mujoco.MjvOption()
        self._option.geomgroup[HIDDEN_GROUP] = 0
        self._scene_of: Any = None

    def fits(self, model: Any) -> bool:
        return model is self._scene_of or _asset_hash(model) == self._assets

    def draw(self, model: Any, data: Any, camera: str, size: int) -> Image:
        mujoco = self._mujoco
        if model is not self._scene_of:
            self._scene = mujoco.MjvScene(model, maxgeom=10000)
            self._scene_of = model
        cam = mujoco.MjvCamera()
        cam.type = mujoco.mjtCamera.mjCAMERA_FIXED
        cam.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        groups = model.geom_group.copy()
        full = self._profile == "full"
        if not (full and model.light_castshadow.any()):  # a shadow comes into view from anywhere
            drawn = np.array(self._option.geomgroup)[np.clip(groups, 0, 5)] > 0
            seen = in_view(model, data, cam.fixedcamid, drawn, reflections=full)
            model.geom_group[~seen] = HIDDEN_GROUP
        mujoco.mjv_updateScene(model, data, self._option, None, cam, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        model.geom_group[:] = groups
        if not full:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._gl.make_current()
        picture = np.empty((size, size, 3), np.uint8)
        viewport = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(picture, None, viewport, self._context)
        return np.ascontiguousarray(picture[::-1])  # GL's first row is the bottom one

    def close(self) -> None:
        self._context.free()
        self._gl.free()


def _close_at_exit(renderer: weakref.ref[Renderer]) -> None:
    alive = renderer()
    if alive is not None:
        alive.close()


def _asset_hash(model: Any) -> str:
    h = hashlib.sha1(usedforsecurity=False)
    for array in (model.mesh_vert, model.mesh_face, model.tex_data, model.tex_height, model.geom_dataid):
        h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()
