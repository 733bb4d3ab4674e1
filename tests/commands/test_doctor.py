"""`ddp doctor` on this machine, and on machines where something is broken."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from conftest import ddp, ok_json
from packaging.requirements import Requirement

from ddp_cli.commands import doctor_checks

pytestmark = pytest.mark.slow

BROKEN = 'raise ImportError("libEGL.so.1 is missing")'
RENDERS_WITH_OSMESA_ONLY = """
import os
class MjModel:
    from_xml_string = staticmethod(lambda xml: None)
class MjData:
    def __init__(self, model): pass
def mj_forward(model, data): pass
class Renderer:
    def __init__(self, *size):
        if os.environ["MUJOCO_GL"] == "egl":
            raise RuntimeError("no display")
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def update_scene(self, data): pass
    def render(self):
        import numpy
        return numpy.full((1,), 255)
"""


def install_metadata(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def install_mujoco(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, version: str) -> None:
    """Puts another mujoco first on the path, of this process and of those that it starts."""
    (folder / "mujoco.py").write_text(code)
    install_metadata(folder, "mujoco", version)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_this_machine_passes() -> None:
    checks = ok_json("doctor")
    assert {"python", "mujoco", "rendering with egl", "simulator", "GPU", "memory"} <= {c["name"] for c in checks}


def test_problems_are_printed_with_a_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_mujoco(tmp_path, monkeypatch, BROKEN, "4.0.0")
    result = ddp("doctor")
    assert result.exit_code == 1
    assert "libEGL.so.1 is missing" in result.stdout
    assert "4.0.0, but mujoco<3.10,>=3.3 is required" in " ".join(result.stdout.split())
    assert "fix for mujoco: pip install 'mujoco<3.10,>=3.3'" in result.stdout
    assert "fix for rendering with egl: sudo apt-get install" in result.stdout


@pytest.mark.parametrize(
    ("package", "version", "required"),
    [
        ("numpy", "1.24.4", "numpy>=1.26"), ("zarr", "2.18.3", "zarr>=3.1"), ("h5py", "3.8.0", "h5py>=3.11"),
        ("robosuite", "1.4.1", "robosuite==1.5.2"), ("pydantic", "1.10.26", "pydantic>=2.12"),
        ("diffusers", "0.30.0", "diffusers>=0.35"), ("typer", "0.9.4", "typer>="),
        ("pyarrow", "26.0", "pyarrow<26,>=17"),
    ],
)  # fmt: skip
def test_a_package_of_another_version_is_named(
    package: str, version: str, required: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the metadata is of the other version, as its checks in other processes would take seconds each."""
    install_metadata(tmp_path, package, version)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor_checks, "_rendering", list)
    for name in ("_simulator", "_gpu"):
        monkeypatch.setattr(doctor_checks, name, lambda: doctor_checks.CheckResult("", True, ""))
    checks = json.loads(ddp("doctor", "--json").stdout)
    (problem,) = [check for check in checks if not check["ok"]]
    assert problem["name"] == package
    assert problem["detail"].startswith(f"{version}, but {required}")
    assert problem["fix"].replace("'", "").startswith(f"pip install {required}")


def test_every_requirement_is_checked() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"]
    assert {*doctor_checks.EXTRAS} == {*extras} - {"dev"}
    lines = sum((extras[extra] for extra in doctor_checks.EXTRAS), pyproject["project"]["dependencies"])
    required = {Requirement(line).name for line in lines}
    assert required <= {check["name"] for check in ok_json("doctor")}


@pytest.mark.parametrize(
    ("name", "value", "problem", "fix"),
    [
        ("MUJOCO_GL", "glfw", "renders in a window of a display", "unset MUJOCO_GL, or set it to egl"),
        ("MUJOCO_GL", "nonsense", "is not a back end of MuJoCo", "unset MUJOCO_GL, or set it to egl"),
        ("MUJOCO_GL", "disable", "turns rendering off", "unset MUJOCO_GL, or set it to egl"),
        ("MUJOCO_EGL_DEVICE_ID", "77", "is not an EGL device of this machine", "unset MUJOCO_EGL_DEVICE_ID"),
    ],
)
def test_variables_that_prevent_rendering(
    name: str, value: str, problem: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):  # set in this process when mujoco was imported
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv(name, value)
    result = ddp("doctor", "--json")
    assert result.exit_code == 1
    (check,) = [check for check in json.loads(result.stdout) if not check["ok"]]
    assert (check["name"], check["fix"]) == (name, fix)
    assert check["detail"].startswith(f"{name}={value} {problem}")


def test_a_variable_that_ddp_sets_itself_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("PYOPENGL_PLATFORM", "glx")
    assert "glx: ddp uses egl instead" in [check["detail"] for check in ok_json("doctor")]


def test_a_back_end_that_loads_but_does_not_render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    install_mujoco(tmp_path, monkeypatch, RENDERS_WITH_OSMESA_ONLY, "3.9.0")
    assert "fix for MUJOCO_GL: unset MUJOCO_GL, or set it to osmesa" in ddp("doctor").stdout
