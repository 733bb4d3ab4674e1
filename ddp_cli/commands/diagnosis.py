"""What an installation needs, looked at piece by piece. Risky pieces run in a process of their own."""

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
"""Package -> what pip must install to get a version that works."""

APT = "sudo apt-get install libegl1 libgl1-mesa-dri libosmesa6"

PROBE = """
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
print("drawn", flush=True)
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
there = torch.cuda.is_available()
print(torch.cuda.get_device_name() if there else "none: training uses the CPU (preset laptop)")
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `cure` says what to do where it is not ok."""

    what: str
    ok: bool
    found: str
    cure: str = ""


def diagnose() -> list[Finding]:
    """Everything `ddp doctor` shows, in its order."""
    python_ok = sys.version_info >= (3, 11)
    return [
        Finding("ddp", True, __version__),
        Finding("python", python_ok, platform.python_version(), "install Python 3.11 or newer"),
        *(_package(name, wanted) for name, wanted in PACKAGES.items()),
        *_rendering(),
        _simulator(),
        _gpu(),
        _memory(),
        _disk(),
    ]


def _package(name: str, wanted: str) -> Finding:
    cure = f"pip install {wanted}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", cure)
    if name == "mujoco":
        ok = (3, 3) <= tuple(int(x) for x in version.split(".")[:2]) < (3, 10)
        return Finding(name, ok, version, f"robosuite 1.5.2 does not work with it: {cure}")
    return Finding(name, True, version)


def _rendering() -> list[Finding]:
    """Egl and osmesa, each in its own process; one that works is enough."""
    works = {b: _python(PROBE.format(backend=b)) for b in ("egl", "osmesa")}
    usable = [b for b, (ok, _) in works.items() if ok]
    findings = [
        # one that works is enough: the other is only told
        Finding(f"rendering with {b}", ok or bool(usable), "works" if ok else f"does not work: {why}", APT)
        for b, (ok, why) in works.items()
    ]
    asked = os.environ.get("MUJOCO_GL", "")
    if asked in works and asked not in usable:
        cure = f"unset MUJOCO_GL, or set it to {usable[0]}" if usable else APT
        return [*findings, Finding("MUJOCO_GL", False, asked, cure)]
    taken = choose_gl_backend()
    if taken in works and usable and taken not in usable:
        return [*findings, Finding("MUJOCO_GL", False, f"not set; ddp takes {taken}", f"export MUJOCO_GL={usable[0]}")]
    return [*findings, Finding("MUJOCO_GL", bool(taken), asked or f"not set; ddp takes {taken or 'none'}", APT)]


def _simulator() -> Finding:
    ok, why = _python(MAKE_LIFT)
    found = "makes an environment" if ok else why
    return Finding("simulator", ok, found, "reinstall: pip install --force-reinstall ddp-cli")


def _gpu() -> Finding:
    ok, found = _python(NAME_GPU)
    return Finding("GPU", ok, found, "pip install --force-reinstall torch")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{total:.0f} GiB, {default_workers()} processors"
    return Finding("memory", total >= 4, text, "use --workers 1; a simulator process takes about 0.8 GiB")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding(
        "disk", free >= 2, f"{free:.0f} GiB free here", "free some space: stores and checkpoints need a few GiB"
    )


def _python(code: str) -> tuple[bool, str]:
    """Runs `code` in a new process: (worked, its output or the last line of the error)."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, cwd=folder, check=False
            )
    except subprocess.TimeoutExpired:
        return False, "no answer in 3 minutes"
    if done.returncode == 0:
        return True, done.stdout.strip()
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return False, (lines[-1] if lines else f"exit status {done.returncode}")[:200]
