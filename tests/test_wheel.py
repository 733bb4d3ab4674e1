"""The built wheel works in an empty folder, without the source checkout and its sample data."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import TINY

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as pip would unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    process = subprocess.run([str(x) for x in build], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddp_cli.cli", *map(str, args)]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_the_package_and_no_sample_data(installed: Path) -> None:
    names = {path.name for path in installed.iterdir()}
    assert "ddp_cli" in names
    assert not {"tests", "sample_data", "docs"} & names


@pytest.mark.slow
def test_train_collects_demonstrations_first(installed: Path, tmp_path: Path) -> None:
    settings = [x for key, value in TINY.items() for x in ("--set", f"{key}={value}")]
    trained = run(
        installed, tmp_path, "train", "--task", "lift", "--obs", "state", "--steps", 2, "--name", "x", *settings
    )
    assert trained.returncode == 0, trained.stderr
    assert "collecting 100 demonstrations of lift in 'data/lift.hdf5' with `ddp collect`" in trained.stderr
    assert (tmp_path / "runs/lift/x/checkpoints/last/model.safetensors").is_file()
    assert (tmp_path / "data/lift-state.zarr").is_dir()
    again = run(
        installed, tmp_path, "train", "--task", "lift", "--obs", "state", "--steps", 1, "--name", "y", *settings
    )
    assert again.returncode == 0, again.stderr
    assert "collecting" not in again.stderr
