"""A conversion that is killed at any moment is resumed by the same command."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddp_cli.commands.options import sample_demos
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.store import Store
from ddp_cli.data.store_copy import copy_store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.tasks import get_task

pytestmark = pytest.mark.slow

TASK = get_task("lift")
LENGTHS = [37, 120, 64, 5, 90] * 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of more than six thousand noise images per camera."""
    path, rng = tmp_path_factory.mktemp("source") / "s.zarr", np.random.default_rng(0)
    attributes = {
        "render": "fast", "obs": "image", "env_args": {}, "versions": {}, "source": {},
        "action": {"convention": "delta", "dim": 7},
    }  # fmt: skip
    writer = StoreWriter(path, TASK, LENGTHS, attributes, 3)
    for length in LENGTHS:
        images = {key: rng.integers(0, 256, (length, 84, 84, 3), np.uint8) for key in TASK.images("image")}
        vectors = {key: rng.normal(size=(length, width)) for key, width in TASK.vectors("state").items()}
        writer.append(images | vectors | {"action": rng.normal(size=(length, 7))})
    writer.finish({})
    return path


def count_chunks(partial: Path) -> int:
    """Chunks of one camera on disk."""
    return len([path for path in partial.glob("data/agentview_image/c.*.0.0.0") if path.is_file()])


def convert_with_kills(source: Path, out: Path, times: int, max_delay: float, *options: str) -> list[int]:
    """Converts, and kills the process `times` times, up to `max_delay` seconds after it started to write.

    Returns the number of chunks on disk after each kill.
    """
    partial, rng, chunk_counts = out.with_name(out.name + ".partial"), random.Random(0), []
    command = [sys.executable, "-m", "ddp_cli.cli", "convert", source, "--out", out, *options]
    while not out.exists():
        before, process = count_chunks(partial), subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(chunk_counts) < times and process.poll() is None:
            time.sleep(0.01)
            if count_chunks(partial) > before:  # it has started to write
                time.sleep(rng.uniform(0, max_delay))
                process.kill()
                chunk_counts.append(count_chunks(partial))
        assert process.wait(timeout=120) in (0, -signal.SIGKILL)
    assert not partial.exists()
    return chunk_counts


def assert_equal_stores(path: Path, reference_path: Path) -> None:
    store, reference = Store(path), Store(reference_path)
    for key in (*TASK.images("image"), *TASK.vectors("state"), "action"):
        np.testing.assert_array_equal(store.read(key), reference.read(key))
    assert store.attrs == reference.attrs


def test_a_copy_that_is_killed_ten_times_writes_the_same_store(source: Path, tmp_path: Path) -> None:
    copy_store(Store(source), tmp_path / "uninterrupted.zarr", None, None, 3, lambda *_: None)
    chunk_counts = convert_with_kills(source, tmp_path / "killed.zarr", 10, 0.1)
    assert len(chunk_counts) == 10
    assert chunk_counts == sorted(chunk_counts)  # resumed, not restarted
    assert 0 < chunk_counts[0] < chunk_counts[-1]
    assert_equal_stores(tmp_path / "killed.zarr", tmp_path / "uninterrupted.zarr")


def test_a_conversion_that_is_killed_while_rendering_writes_the_same_store(tmp_path: Path) -> None:
    """Only two kills: every start loads the simulator."""
    demos = sample_demos("lift")
    convert(demos, tmp_path / "uninterrupted.zarr", 1, lambda *_: None, ConvertOptions(only=":20", check=0))
    chunk_counts = convert_with_kills(demos, tmp_path / "killed.zarr", 2, 0.5, "--only", ":20", "--check", "0")
    assert len(chunk_counts) == 2
    assert chunk_counts == sorted(chunk_counts)
    assert_equal_stores(tmp_path / "killed.zarr", tmp_path / "uninterrupted.zarr")
