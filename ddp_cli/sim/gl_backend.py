"""The OpenGL back end that MuJoCo renders with, and what is wrong where it cannot render.

MuJoCo reads MUJOCO_GL, PYOPENGL_PLATFORM and MUJOCO_EGL_DEVICE_ID when it is imported and when it creates a context.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from ddp_cli.errors import SimulatorError

OFFSCREEN_BACKENDS = ("egl", "osmesa")
WINDOW_BACKENDS = ("glfw", "glx")
DISABLED = ("disable", "disabled", "off", "false", "0")
DEFAULT = ("", "enable", "enabled", "on", "true", "1")  # MuJoCo takes glfw, which needs a display
VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")

INSTALL_LIBRARIES = "sudo apt-get install libegl1 libgl1-mesa-dri libosmesa6"


def choose_gl_backend() -> str:
    """Set MUJOCO_GL to a back end that this machine can load (egl, then osmesa), and return it.

    Call before mujoco is imported. A back end that the user has set is not changed. PYOPENGL_PLATFORM follows it:
    MuJoCo renders with no other one.
    """
    _load_triton()
    backend = gl_backend()
    if sys.platform != "linux":
        return backend
    if backend in DEFAULT:
        libraries = {"egl": "EGL", "osmesa": "OSMesa"}
        backend = next((name for name, library in libraries.items() if ctypes.util.find_library(library)), "")
        os.environ["MUJOCO_GL"] = backend
    if backend in OFFSCREEN_BACKENDS and "OpenGL" not in sys.modules:
        os.environ["PYOPENGL_PLATFORM"] = backend
    return backend


def _load_triton() -> None:
    """Load Triton's library before Mesa's, if it is installed: both contain LLVM, and importing torch._dynamo, and with
    it Triton, after a GL context has been created ends the process.
    """
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(Path(folder) / "_C" / "libtriton.so"))


def gl_backend() -> str:
    """The value of MUJOCO_GL as MuJoCo reads it."""
    return os.environ.get("MUJOCO_GL", "").lower().strip()


def check_gl_variables() -> None:
    """SimulatorError if MUJOCO_GL turns rendering off or names no back end."""
    backend, value = gl_backend(), os.environ.get("MUJOCO_GL", "")
    if backend in DISABLED:
        raise SimulatorError(f"MUJOCO_GL={value} turns rendering off.", unset_hint("MUJOCO_GL"))
    if sys.platform == "linux" and backend not in (*OFFSCREEN_BACKENDS, *WINDOW_BACKENDS, *DEFAULT):
        raise SimulatorError(f"MUJOCO_GL={value} is not a back end of MuJoCo.", unset_hint("MUJOCO_GL"))


def import_error(error: Exception) -> SimulatorError:
    """The error for the user where robosuite or MuJoCo could not be imported."""
    device, visible = os.environ.get("MUJOCO_EGL_DEVICE_ID"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if isinstance(error, AssertionError) and device is not None and visible:
        return SimulatorError(
            f"MUJOCO_EGL_DEVICE_ID={device} is not in CUDA_VISIBLE_DEVICES={visible}, as robosuite requires.",
            unset_hint("MUJOCO_EGL_DEVICE_ID"),
        )
    if gl_backend() not in DISABLED:
        check_gl_variables()
    if _import_error(gl_backend()):
        return rendering_error(error)
    return SimulatorError(f"robosuite cannot be imported: {_shorten(error)}.", "Run `ddp doctor`.")


def rendering_error(error: Exception) -> SimulatorError:
    """The error for the user where MuJoCo could not create a GL context."""
    backend = gl_backend()
    reason = _shorten(_import_error(backend) or error)
    device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if backend == "egl" and device is not None and not _is_egl_device(device):
        return SimulatorError(
            f"MUJOCO_EGL_DEVICE_ID={device} is not an EGL device of this machine ({_describe_devices()}).",
            unset_hint("MUJOCO_EGL_DEVICE_ID"),
        )
    platform = os.environ.get("PYOPENGL_PLATFORM", "")
    if backend in OFFSCREEN_BACKENDS and platform.lower() not in ("", backend):
        return SimulatorError(
            f"PYOPENGL_PLATFORM={platform} does not fit MUJOCO_GL={backend}.", unset_hint("PYOPENGL_PLATFORM")
        )
    if backend in WINDOW_BACKENDS:
        display = os.environ.get("DISPLAY")
        shown = f"DISPLAY={display} is not one that can be opened" if display else "there is none (DISPLAY is not set)"
        return SimulatorError(
            f"MUJOCO_GL={os.environ['MUJOCO_GL']} renders in a window of a display, and {shown}.",
            unset_hint("MUJOCO_GL"),
        )
    if not backend:
        return SimulatorError("no library to render with is installed (EGL or OSMesa).", f"Run `{INSTALL_LIBRARIES}`.")
    other = "osmesa" if backend == "egl" else "egl"
    on_device = f" and MUJOCO_EGL_DEVICE_ID={device}" if backend == "egl" and device is not None else ""
    return SimulatorError(
        f"cannot render with MUJOCO_GL={backend}{on_device}: {reason}.",
        f"Install its libraries with `{INSTALL_LIBRARIES}`, or try `export MUJOCO_GL={other}`; "
        "`ddp doctor` shows what works.",
    )


def unset_hint(variable: str) -> str:
    """What to do about a variable, and what is valid for it."""
    valid = {
        "MUJOCO_GL": "ddp then chooses one; valid: egl, osmesa, or glfw with a display",
        "PYOPENGL_PLATFORM": "ddp then sets it; valid: the value of MUJOCO_GL",
        "MUJOCO_EGL_DEVICE_ID": "EGL then takes the first device that works",
    }[variable]
    return f"Run `unset {variable}` and the same command again ({valid}); `ddp doctor` shows what works."


def _import_error(backend: str) -> Exception | None:
    """Why a back end could not be imported: mujoco keeps silent about it and has no GLContext then."""
    if backend in OFFSCREEN_BACKENDS:
        try:
            importlib.import_module(f"mujoco.{backend}")
        except Exception as e:  # noqa: BLE001 - GL libraries raise errors of any type
            return e
    return None


def _egl_devices() -> list[Any]:
    try:
        return list(importlib.import_module("mujoco.egl.egl_ext").eglQueryDevicesEXT())
    except Exception:  # noqa: BLE001
        return []


def _is_egl_device(device: str) -> bool:
    return device.isdecimal() and int(device) < len(_egl_devices())


def _describe_devices() -> str:
    count = len(_egl_devices())
    return f"valid: 0 to {count - 1}" if count > 1 else "valid: 0" if count else "it has none"


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("'NoneType' object has no attribute"):  # PyOpenGL, where a library is missing
        text = "its library cannot be loaded"
    return text[:200].rstrip(".")
