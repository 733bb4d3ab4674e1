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

from ddp_cli.data.copying import copy_store
from ddp_cli.data.store import Store, StoreWriter
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
    return len([path for path in partial.glob("data/agentview_image/c/*/0/0/0") if path.is_file()])


def test_killed_ten_times_it_ends_with_the_same_arrays(source: Path, tmp_path: Path) -> None:
    copy_store(Store(source), tmp_path / "whole.zarr", None, None, 3, lambda *_: None)
    out, partial = tmp_path / "killed.zarr", tmp_path / "killed.zarr.partial"
    command = [sys.executable, "-m", "ddp_cli.cli", "convert", source, "--out", out]
    rng, reached = random.Random(0), []
    while not out.exists():
        before, process = written(partial), subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(reached) < 10 and process.poll() is None:
            time.sleep(0.01)
            if written(partial) > before:  # it is at work
                time.sleep(rng.uniform(0, 0.1))
                process.kill()
                reached.append(written(partial))
        assert process.wait(timeout=120) in (0, -signal.SIGKILL)
    assert len(reached) == 10
    assert reached == sorted(reached)  # nothing was begun anew
    assert 0 < reached[0] < reached[-1]
    assert not partial.exists()
    whole, killed = Store(tmp_path / "whole.zarr"), Store(out)
    for key in (*TASK.images("image"), *TASK.vectors("state"), "action"):
        np.testing.assert_array_equal(killed.read(key), whole.read(key))
    assert killed.attrs == whole.attrs
