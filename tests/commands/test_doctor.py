"""`ddp doctor` on this machine, and on machines where something is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ddp, ok_json

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


def install_mujoco(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, version: str) -> None:
    """Puts another mujoco first on the path, of this process and of those that it starts."""
    (folder / "mujoco.py").write_text(code)
    info = folder / f"mujoco-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mujoco\nVersion: {version}\n")
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
    assert 'fix for mujoco: robosuite 1.5.2 does not work with it: pip install "mujoco>=3.3,<3.10"' in result.stdout
    assert "fix for rendering with egl: sudo apt-get install" in result.stdout


def test_a_back_end_that_loads_but_does_not_render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    install_mujoco(tmp_path, monkeypatch, RENDERS_WITH_OSMESA_ONLY, "3.9.0")
    assert "fix for MUJOCO_GL: unset MUJOCO_GL, or set it to osmesa" in ddp("doctor").stdout
