"""The checks of `ddp doctor`. Checks that could crash or hang run in a process of their own."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ddp_cli import __version__
from ddp_cli.parallel import default_workers
from ddp_cli.sim.renderer import choose_gl_backend

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "diffusers": "diffusers",
    "robosuite": "robosuite==1.5.2",
    "mujoco": '"mujoco>=3.3,<3.10"',
    "zarr": '"zarr>=3"',
    "h5py": "h5py",
    "imageio-ffmpeg": "imageio-ffmpeg",
    "onnxruntime": "onnxruntime",
}
"""Package -> argument of `pip install` that gives a working version."""

APT = "sudo apt-get install libegl1 libgl1-mesa-dri libosmesa6"

RENDER_SPHERE = """
import os
os.environ["MUJOCO_GL"] = "{backend}"
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 2"/><geom type="sphere" size=".5" rgba="1 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 50
print("rendered", flush=True)
os._exit(0)
"""


MAKE_LIFT = """
import os
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task
Simulator(get_task("lift")).reset(0)
os._exit(0)
"""

NAME_GPU = """
import torch
available = torch.cuda.is_available()
print(torch.cuda.get_device_name() if available else "none: training uses the CPU (preset laptop)")
"""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check; `fix` says what to do where it is not ok."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def diagnose() -> list[CheckResult]:
    """All checks, in the order in which `ddp doctor` prints them."""
    python_ok = sys.version_info >= (3, 11)
    return [
        CheckResult("ddp", True, __version__),
        CheckResult("python", python_ok, platform.python_version(), "install Python 3.11 or newer"),
        *(_package(name, requirement) for name, requirement in PACKAGES.items()),
        *_rendering(),
        _simulator(),
        _gpu(),
        _memory(),
        _disk(),
    ]


def _package(name: str, requirement: str) -> CheckResult:
    fix = f"pip install {requirement}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return CheckResult(name, False, "not installed", fix)
    if name == "mujoco":
        ok = (3, 3) <= tuple(int(x) for x in version.split(".")[:2]) < (3, 10)
        return CheckResult(name, ok, version, f"robosuite 1.5.2 does not work with it: {fix}")
    return CheckResult(name, True, version)


def _rendering() -> list[CheckResult]:
    """EGL and OSMesa, each in its own process. One working back end is enough."""
    results = {b: _run_python(RENDER_SPHERE.format(backend=b)) for b in ("egl", "osmesa")}
    usable = [b for b, (ok, _) in results.items() if ok]
    findings = [
        CheckResult(f"rendering with {b}", ok or bool(usable), "works" if ok else f"does not work: {reason}", APT)
        for b, (ok, reason) in results.items()
    ]
    requested = os.environ.get("MUJOCO_GL", "")
    if requested in results and requested not in usable:
        fix = f"unset MUJOCO_GL, or set it to {usable[0]}" if usable else APT
        return [*findings, CheckResult("MUJOCO_GL", False, requested, fix)]
    chosen = choose_gl_backend()
    detail = requested or f"not set; ddp uses {chosen or 'none'}"
    if chosen in results and usable and chosen not in usable:
        return [*findings, CheckResult("MUJOCO_GL", False, detail, f"export MUJOCO_GL={usable[0]}")]
    return [*findings, CheckResult("MUJOCO_GL", bool(chosen), detail, APT)]


def _simulator() -> CheckResult:
    ok, output = _run_python(MAKE_LIFT)
    detail = "creates an environment" if ok else output
    return CheckResult("simulator", ok, detail, 'pip install --force-reinstall robosuite==1.5.2 "mujoco>=3.3,<3.10"')


def _gpu() -> CheckResult:
    ok, output = _run_python(NAME_GPU)
    return CheckResult("GPU", ok, output, "pip install --force-reinstall torch")


def _memory() -> CheckResult:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{total:.0f} GiB, {default_workers()} CPU cores"
    return CheckResult("memory", total >= 4, text, "use --workers 1; each simulator process takes about 0.8 GiB")


def _disk() -> CheckResult:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return CheckResult(
        "disk", free >= 2, f"{free:.0f} GiB free here", "free some space: stores and checkpoints need a few GiB"
    )


def _run_python(code: str) -> tuple[bool, str]:
    """Runs `code` in a new process: (success, its output or the last line of the error)."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, cwd=folder, check=False
            )
    except subprocess.TimeoutExpired:
        return False, "no answer in 3 minutes"
    if process.returncode == 0:
        return True, process.stdout.strip()
    lines = [line for line in process.stderr.strip().splitlines() if line.strip()]
    return False, (lines[-1] if lines else f"exit status {process.returncode}")[:200]
