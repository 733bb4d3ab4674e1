"""The memory use of a conversion does not grow with the size of its input."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.store import Store

pytestmark = pytest.mark.slow

CONVERT = """
import resource, sys
from pathlib import Path
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions

convert(Path(sys.argv[1]), Path(sys.argv[2]), 1, lambda *_: None, ConvertOptions(check=1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # kB
"""
IMAGE_KEYS = ("agentview_image", "robot0_eye_in_hand_image")
STEPS = 100  # of a demo
EPISODE_IMAGE_BYTES = STEPS * 2 * 84 * 84 * 3


def write_image_file(lift_demos: Path, lift_store: Store, path: Path, episodes: int) -> Path:
    """A file of `episodes` demos with STEPS artificial images each."""
    shutil.copy(lift_demos, path)
    with DemoFile(lift_demos) as demos, h5py.File(path, "r+") as f:
        demo = demos.read("demo_0")
        first = slice(0, len(demo.actions))
        vectors = {key: lift_store.read(key, rows=first) for key in demos.task.vectors("state")}
        rows = {key: np.resize(array, (STEPS, array.shape[1])) for key, array in vectors.items()}
        images = np.arange(STEPS, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 84, 84, 3), np.uint8)
        model = f["data/demo_0"].attrs["model"]
        for name in list(f["data"]):
            del f["data"][name]
        for i in range(episodes):
            group = f["data"].create_group(f"demo_{i}")
            group.attrs["model"] = model
            states = np.resize(demo.states, (STEPS, demo.states.shape[1]))
            states[:, 0] = np.arange(STEPS) / 20  # time
            group["states"] = states
            group["actions"] = np.resize(demo.actions, (STEPS, 7)) * (1 - i / 1000)  # no demo repeats another
            for key, value in {**rows, **dict.fromkeys(IMAGE_KEYS, images)}.items():
                group[f"obs/{key}"] = value
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs on other systems")
def test_memory_holds_a_few_episodes_at_most(lift_demos: Path, lift_store: Store, tmp_path: Path) -> None:
    peaks = []
    for episodes in (10, 60):
        path = write_image_file(lift_demos, lift_store, tmp_path / f"{episodes}.hdf5", episodes)
        command = [sys.executable, "-c", CONVERT, path, tmp_path / f"{episodes}.zarr"]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024)
    assert peaks[1] - peaks[0] < 5 * EPISODE_IMAGE_BYTES, "converting 50 more episodes used more memory"
