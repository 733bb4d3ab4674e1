"""The checks of `ddp doctor`. Checks that could crash or hang run in a process of their own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_cli import __version__
from ddp_cli.parallel import default_workers
from ddp_cli.sim.gl_backend import INSTALL_LIBRARIES, OFFSCREEN_BACKENDS, VARIABLES

if TYPE_CHECKING:
    from packaging.markers import Marker
    from packaging.requirements import Requirement

EXTRAS = ("lerobot", "jpeg2k", "gym", "serve", "wandb", "ray")

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

RENDER_LIFT = """
import json, os
from ddp_cli.errors import SimulatorError
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task
try:
    sim = Simulator(get_task("lift"))
    sim.reset(0)
    sim.image("agentview_image")
    message, hint = "", ""
except SimulatorError as e:
    message, hint = e.message, e.hint
print(json.dumps({"message": message, "hint": hint, "backend": os.environ.get("MUJOCO_GL", "")}), flush=True)
os._exit(0)
"""
"""As the commands render: with the environment variables of the user."""

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
        *_packages(),
        *_rendering(),
        _simulator(),
        _gpu(),
        _memory(),
        _disk(),
    ]


def _packages() -> list[CheckResult]:
    """The packages that ddp requires, and those of its extras that are installed."""
    try:
        requirements = importlib.metadata.requires("ddp-cli") or []
    except importlib.metadata.PackageNotFoundError:
        return [CheckResult("packages", False, "not checked: ddp-cli is not installed", "pip install ddp-cli")]
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [CheckResult("packaging", False, "not installed", "pip install packaging")]
    required = [requirement for requirement in map(Requirement, requirements) if _applies(requirement.marker)]
    return [_package(requirement) for requirement in sorted(required, key=lambda r: r.name)]


def _applies(marker: Marker | None) -> bool:
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *EXTRAS))


def _package(requirement: Requirement) -> CheckResult:
    argument = f"{requirement.name}{requirement.specifier}"
    fix = f"pip install {shlex.quote(argument)}"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        is_optional = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        return CheckResult(requirement.name, is_optional, "not installed" + (", optional" if is_optional else ""), fix)
    ok = requirement.specifier.contains(version, prereleases=True)
    return CheckResult(requirement.name, ok, version if ok else f"{version}, but {argument} is required", fix)


def _without_variables() -> dict[str, str]:
    """The environment without the variables that rendering depends on."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


def _rendering() -> list[CheckResult]:
    """EGL and OSMesa, each in its own process and without the user's variables. One working back end is enough."""
    clean = _without_variables()
    results = {b: _run_python(RENDER_SPHERE.format(backend=b), clean) for b in OFFSCREEN_BACKENDS}
    usable = [b for b, (ok, _) in results.items() if ok]
    findings = [
        CheckResult(
            f"rendering with {b}", ok or bool(usable), "works" if ok else f"does not work: {reason}", INSTALL_LIBRARIES
        )
        for b, (ok, reason) in results.items()
    ]
    return [*findings, *_variables(usable)]


def _variables(usable: list[str]) -> list[CheckResult]:
    """The environment variables that rendering depends on, judged by an image that is rendered with them."""
    ok, output = _run_python(RENDER_LIFT)
    outcome = json.loads(output.splitlines()[-1]) if ok and output else {"message": "", "hint": "", "backend": ""}
    message, backend = outcome["message"], outcome["backend"]
    requested = os.environ.get("MUJOCO_GL", "")
    findings = []
    for name in VARIABLES:
        value = os.environ.get(name)
        if value is not None and f"{name}={value} " in f"{message} ":
            findings.append(CheckResult(name, False, message, f"unset {name}"))
        elif value is not None and name == "PYOPENGL_PLATFORM" and backend and value != backend:
            findings.append(CheckResult(name, True, f"{value}: ddp uses {backend} instead"))
        elif value is not None or name == "MUJOCO_GL":
            findings.append(CheckResult(name, True, value or f"not set; ddp uses {backend or 'none'}"))
    is_unusable = requested in OFFSCREEN_BACKENDS and usable and requested not in usable
    if is_unusable or (message and all(finding.ok for finding in findings)):
        fix = f"export MUJOCO_GL={usable[0]}" if usable else outcome["hint"] or INSTALL_LIBRARIES
        findings[0] = CheckResult("MUJOCO_GL", False, message or requested, fix)
    if requested and usable and not findings[0].ok:
        findings[0] = replace(findings[0], fix=f"unset MUJOCO_GL, or set it to {usable[0]}")
    return findings


def _simulator() -> CheckResult:
    ok, output = _run_python(MAKE_LIFT, _without_variables())  # those have checks of their own
    detail = "creates an environment" if ok else output
    return CheckResult("simulator", ok, detail, 'pip install --force-reinstall robosuite==1.5.2 "mujoco>=3.3,<3.10"')


def _gpu() -> CheckResult:
    ok, output = _run_python(NAME_GPU)
    return CheckResult("GPU", ok, output, "pip install --force-reinstall torch")


def _memory() -> CheckResult:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{total:.0f} GiB, {default_workers()} CPU cores"
    return CheckResult("memory", total >= 4, text, "use --workers 1; each simulator process takes about 1.2 GB")


def _disk() -> CheckResult:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return CheckResult(
        "disk", free >= 2, f"{free:.0f} GiB free here", "free some space: stores and checkpoints need a few GiB"
    )


def _run_python(code: str, environment: dict[str, str] | None = None) -> tuple[bool, str]:
    """Runs `code` in a new process: (success, its output or the last line of the error)."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, cwd=folder, check=False,
                env=environment,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, "no answer in 3 minutes"
    if process.returncode == 0:
        return True, process.stdout.strip()
    lines = [line for line in process.stderr.strip().splitlines() if line.strip()]
    return False, (lines[-1] if lines else f"exit status {process.returncode}")[:200]
