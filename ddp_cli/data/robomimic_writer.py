"""A store as a file that robomimic trains on.

It holds what was seen and done, and no states of the simulator: those a store does not keep, so nothing of this can
be played back. Every episode ends with a reward of 1, which is what `ddp collect` and most people's files are made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.store import Store
from ddp_cli.disk import atomic_file
from ddp_cli.rotation import matrix_from_6d, matrix_to_rotvec
from ddp_cli.sim.simulator import env_args
from ddp_cli.tasks import IMAGE_SIZE


def write_robomimic(store: Store, out: Path, progress: Callable[[int, int], None]) -> int:
    """Writes `store` to the HDF5 file `out`; returns the number of steps. It exists only once it is whole."""
    total = int(store.episode_ends[-1])
    with atomic_file(out) as partial, h5py.File(partial, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps(_env_args(store))
        for i, (begin, end) in enumerate(store.spans):
            progress(begin, total)
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = end - begin
            demo["actions"] = _actions(store.read("action", rows=slice(begin, end)).astype(np.float64))
            last = np.zeros(end - begin)
            last[-1] = 1
            demo["rewards"], demo["dones"] = last, last.astype(np.int64)
            for key in store.pictures:
                pictures = store.read(key, rows=slice(begin, end))
                # A picture at a time, since windows are read at random.
                demo.create_dataset(
                    f"obs/{key}", data=pictures, chunks=(1, *pictures.shape[1:]), compression="gzip", compression_opts=1
                )
            for key in store.task.vectors("state"):
                demo[f"obs/{key}"] = store.read(key, rows=slice(begin, end)).astype(np.float64)
        progress(total, total)
    return total


def _env_args(store: Store) -> dict[str, Any]:
    """The environment that robomimic makes for rollouts: its cameras see what is in the file."""
    found = env_args(store.task, store.attrs["action"]["convention"])
    if store.pictures:
        found["env_kwargs"] |= {
            "has_offscreen_renderer": True, "use_camera_obs": True, "camera_depths": False,
            "camera_names": [store.task.cameras[key] for key in store.pictures],
            "camera_heights": IMAGE_SIZE, "camera_widths": IMAGE_SIZE,
        }  # fmt: skip
    return found


def _actions(actions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute actions as robomimic has them: 7 values, the rotation as axis-angle."""
    if actions.shape[1] == 7:
        return actions
    turns = np.stack([matrix_to_rotvec(matrix) for matrix in matrix_from_6d(actions[:, 3:9])])
    return np.concatenate([actions[:, :3], turns, actions[:, 9:]], axis=1)
