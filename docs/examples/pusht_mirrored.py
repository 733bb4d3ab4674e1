"""The demonstrations of Push-T seen in a mirror: a second dataset in the layout of the published one.

The goal and the block look the same when mirrored at the line x + y = 512, so each demonstration gives another one:

    python pusht_mirrored.py pusht_cchi_v7_replay.zarr mirrored_replay.zarr

How both are converted, merged and trained on is in docs/benchmarks.md, under Push-T.
"""

import sys
from pathlib import Path

import numpy as np
import zarr
from pusht_keypoints import keypoints

SIZE = 512  # [pixels] of the simulator


def mirrored(points: np.ndarray) -> np.ndarray:
    """(..., 2) -> (..., 2)"""
    return SIZE - points[..., ::-1]


if len(sys.argv) != 3:
    sys.exit("usage: python pusht_mirrored.py SOURCE.zarr OUT.zarr")
source, out = map(Path, sys.argv[1:])
if out.exists():
    sys.exit(f"'{out}' already exists")
demos = zarr.open_group(source, mode="r")
states = demos["data/state"][:]  # (steps, 5): position of the agent, position and angle of the block
states = np.concatenate([mirrored(states[:, :2]), mirrored(states[:, 2:4]), np.pi / 2 - states[:, 4:]], axis=1)
states[:, 4] %= 2 * np.pi
arrays = {
    "img": demos["data/img"][:][:, ::-1, ::-1].transpose(0, 2, 1, 3),
    "state": states,
    "keypoint": keypoints(states[:, 2:4], states[:, 4]).astype(np.float32),
    "action": mirrored(demos["data/action"][:]),
}
partial = out.with_name(f"{out.name}.partial")
group = zarr.create_group(partial, overwrite=True)
for name, array in arrays.items():
    group.create_array(f"data/{name}", data=array)
group.create_array("meta/episode_ends", data=demos["meta/episode_ends"][:])
partial.rename(out)
