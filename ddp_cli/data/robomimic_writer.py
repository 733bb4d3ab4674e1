"""Writes a store as an HDF5 file that robomimic trains on.

It holds observations and actions, but no simulator states, which a store does not keep: its demonstrations cannot be
replayed. Every episode ends with a reward of 1, as in the recordings of `ddp collect` and most published datasets;
failed episodes of a policy have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddp_cli.data.actions import rotation_6d_to_axis_angle
from ddp_cli.data.store import Store
from ddp_cli.disk import atomic_file
from ddp_cli.sim.environment import env_args


def write_robomimic(store: Store, out: Path, progress: Callable[[int, int], None]) -> int:
    """Writes `store` to the HDF5 file `out`; returns the number of steps. `out` appears only when complete."""
    total, convention = int(store.episode_ends[-1]), store.attrs["action"]["convention"]
    with atomic_file(out) as partial, h5py.File(partial, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps(_env_args(store))
        policy_episodes = store.policy_episodes
        for i, ((begin, end), name) in enumerate(zip(store.episode_bounds, store.episode_names, strict=True)):
            progress(begin, total)
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = end - begin
            actions = store.read("action", rows=slice(begin, end)).astype(np.float64)
            if convention == "absolute":
                actions = rotation_6d_to_axis_angle(actions, store.task.action_parts(convention))
            demo["actions"] = actions
            dones = np.zeros(end - begin, np.int64)
            dones[-1] = 1
            demo["rewards"], demo["dones"] = dones * float(policy_episodes.get(name, True)), dones
            for key in store.image_keys:
                images = store.read(key, rows=slice(begin, end))
                # One image per chunk, since windows are read in random order.
                demo.create_dataset(
                    f"obs/{key}", data=images, chunks=(1, *images.shape[1:]), compression="gzip", compression_opts=1
                )
            for key in store.task.vectors("state"):
                demo[f"obs/{key}"] = store.read(key, rows=slice(begin, end)).astype(np.float64)
        progress(total, total)
    return total


def _env_args(store: Store) -> dict[str, Any]:
    """The environment that robomimic creates for rollouts, with the cameras of the file."""
    args = env_args(store.task, store.attrs["action"]["convention"])
    if store.image_keys:
        cameras = [store.task.schema.cameras[key] for key in store.image_keys]
        heights, widths = [camera.height for camera in cameras], [camera.width for camera in cameras]
        same_size = len({*zip(heights, widths, strict=True)}) == 1
        args["env_kwargs"] |= {
            "has_offscreen_renderer": True, "use_camera_obs": True, "camera_depths": False,
            "camera_names": [store.task.robosuite.cameras[key] for key in store.image_keys],
            "camera_heights": heights[0] if same_size else heights,
            "camera_widths": widths[0] if same_size else widths,
        }  # fmt: skip
    return args
