"""A conversion may be killed at any moment; the same command goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddp_cli.commands.options import sample_data
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.store import Store
from ddp_cli.data.store_copy import copy_store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.tasks import get_task

TASK = get_task("lift")
LENGTHS = [37, 120, 64, 5, 90] * 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three thousand pictures and more of noise."""
    path, rng = tmp_path_factory.mktemp("source") / "s.zarr", np.random.default_rng(0)
    attributes = {
        "render": "fast", "obs": "image", "env_args": {}, "versions": {}, "source": {},
        "action": {"convention": "delta", "dim": 7},
    }  # fmt: skip
    writer = StoreWriter(path, TASK, LENGTHS, attributes, 3)
    for length in LENGTHS:
        pictures = {key: rng.integers(0, 256, (length, 84, 84, 3), np.uint8) for key in TASK.images("image")}
        vectors = {key: rng.normal(size=(length, width)) for key, width in TASK.vectors("state").items()}
        writer.append(pictures | vectors | {"action": rng.normal(size=(length, 7))})
    writer.finish({})
    return path


def written(partial: Path) -> int:
    """Chunks of one camera."""
    return len([path for path in partial.glob("data/agentview_image/c.*.0.0.0") if path.is_file()])


def kill_often(source: Path, out: Path, times: int, longest: float, *options: str) -> list[int]:
    """Converts, and kills the process `times` times, up to `longest` seconds after it began to write; returns how
    much was written each time.
    """
    partial, rng, reached = out.with_name(out.name + ".partial"), random.Random(0), []
    command = [sys.executable, "-m", "ddp_cli.cli", "convert", source, "--out", out, *options]
    while not out.exists():
        before, process = written(partial), subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(reached) < times and process.poll() is None:
            time.sleep(0.01)
            if written(partial) > before:  # it is at work
                time.sleep(rng.uniform(0, longest))
                process.kill()
                reached.append(written(partial))
        assert process.wait(timeout=120) in (0, -signal.SIGKILL)
    assert not partial.exists()
    return reached


def check_same(one: Path, other: Path) -> None:
    whole, killed = Store(one), Store(other)
    for key in (*TASK.images("image"), *TASK.vectors("state"), "action"):
        np.testing.assert_array_equal(killed.read(key), whole.read(key))
    assert killed.attrs == whole.attrs


def test_killed_ten_times_it_ends_with_the_same_arrays(source: Path, tmp_path: Path) -> None:
    copy_store(Store(source), tmp_path / "whole.zarr", None, None, 3, lambda *_: None)
    reached = kill_often(source, tmp_path / "killed.zarr", 10, 0.1)
    assert len(reached) == 10
    assert reached == sorted(reached)  # nothing was begun anew
    assert 0 < reached[0] < reached[-1]
    check_same(tmp_path / "whole.zarr", tmp_path / "killed.zarr")


def test_killed_while_drawing(tmp_path: Path) -> None:
    """Every start loads the simulator, so only a few times."""
    demos = sample_data() / "lift.hdf5"
    convert(demos, tmp_path / "whole.zarr", 1, lambda *_: None, ConvertOptions(only=":20", check=0))
    reached = kill_often(demos, tmp_path / "killed.zarr", 2, 0.5, "--only", ":20", "--check", "0")
    assert len(reached) == 2
    assert reached == sorted(reached)
    check_same(tmp_path / "whole.zarr", tmp_path / "killed.zarr")
