"""Environment variables that keep MuJoCo from rendering, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ddp_cli.sim.gl_backend import VARIABLES

pytestmark = pytest.mark.slow

RENDER = """
from ddp_cli.errors import SimulatorError
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task
try:
    sim = Simulator(get_task("lift"))
    sim.reset(0)
    print(sim.image("agentview_image").std() > 10)
except SimulatorError as e:
    print(e)
"""

HIDE_LIBRARY = """
import ctypes, ctypes.util
find_library, init = ctypes.util.find_library, ctypes.CDLL.__init__
ctypes.util.find_library = lambda name: None if name == "{name}" else find_library(name)
def load(self, name, *args, **options):
    if "{name}" in str(name):
        raise OSError(name)
    init(self, name, *args, **options)
ctypes.CDLL.__init__ = load
"""


def render(code: str = RENDER, **variables: str) -> str:
    """What is printed with these environment variables; nothing may go to stderr."""
    names = (*VARIABLES, "DISPLAY", "CUDA_VISIBLE_DEVICES")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean | variables, check=True
    )
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MUJOCO_GL", ""), ("MUJOCO_GL", "EGL"), ("MUJOCO_GL", " egl"), ("MUJOCO_GL", "OSMesa"), ("MUJOCO_GL", "1"),
        ("PYOPENGL_PLATFORM", "glx"), ("PYOPENGL_PLATFORM", "osmesa"), ("MUJOCO_EGL_DEVICE_ID", "0"),
        ("DISPLAY", ":99"),
    ],
)  # fmt: skip
def test_harmless_values_render(name: str, value: str) -> None:
    assert render(**{name: value}) == "True"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"MUJOCO_GL": "glfw"},
            "MUJOCO_GL=glfw renders in a window of a display, and there is none (DISPLAY is not set).",
        ),
        (
            {"MUJOCO_GL": "GLX", "DISPLAY": ":99"},
            "MUJOCO_GL=GLX renders in a window of a display, and DISPLAY=:99 is not",
        ),
        ({"MUJOCO_GL": "disable"}, "MUJOCO_GL=disable turns rendering off."),
        ({"MUJOCO_GL": "Off"}, "MUJOCO_GL=Off turns rendering off."),
        ({"MUJOCO_GL": "elg"}, "MUJOCO_GL=elg is not a back end of MuJoCo."),
        ({"MUJOCO_EGL_DEVICE_ID": "77"}, "MUJOCO_EGL_DEVICE_ID=77 is not an EGL device of this machine (valid: 0"),
        ({"MUJOCO_EGL_DEVICE_ID": "x"}, "MUJOCO_EGL_DEVICE_ID=x is not an EGL device of this machine (valid: 0"),
        ({"MUJOCO_EGL_DEVICE_ID": ""}, "MUJOCO_EGL_DEVICE_ID= is not an EGL device of this machine (valid: 0"),
        (
            {"MUJOCO_EGL_DEVICE_ID": "0", "CUDA_VISIBLE_DEVICES": "1"},
            "MUJOCO_EGL_DEVICE_ID=0 is not in CUDA_VISIBLE_DEVICES=1, as robosuite requires.",
        ),
    ],
)
def test_a_variable_that_prevents_rendering_is_named(variables: dict[str, str], message: str) -> None:
    line = render(**variables)
    assert line.startswith(message)
    assert f"Run `unset {next(iter(variables))}` and the same command again" in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(("backend", "library", "other"), [("osmesa", "OSMesa", "egl"), ("egl", "EGL", "osmesa")])
def test_a_missing_library_is_named(backend: str, library: str, other: str) -> None:
    line = render(HIDE_LIBRARY.format(name=library) + RENDER, MUJOCO_GL=backend)
    assert line.startswith(f"cannot render with MUJOCO_GL={backend}: its library cannot be loaded.")
    assert f"or try `export MUJOCO_GL={other}`" in line


def test_egl_without_a_device_is_named() -> None:
    line = render(MUJOCO_GL="egl", __EGL_VENDOR_LIBRARY_FILENAMES="/none")
    assert line.startswith("cannot render with MUJOCO_GL=egl: Cannot initialize a EGL device display.")
    assert "sudo apt-get install libegl1" in line


def test_osmesa_is_chosen_where_egl_is_missing() -> None:
    code = HIDE_LIBRARY.format(name="EGL") + RENDER + "\nimport os; print(os.environ['MUJOCO_GL'])"
    assert render(code).split() == ["True", "osmesa"]


def test_the_simulator_works_where_rendering_is_disabled() -> None:
    code = RENDER.replace('sim.image("agentview_image").std() > 10', "sim.state().size")
    assert render(code, MUJOCO_GL="disable") == "32"


def test_torch_can_compile_after_rendering() -> None:
    """Its compiler and Mesa both contain LLVM."""
    code = """
from ddp_cli.sim.gl_backend import choose_gl_backend
choose_gl_backend()
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 8, 8) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
    import torch._dynamo
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "imported" in done.stdout, (done.returncode, done.stderr[-500:])
