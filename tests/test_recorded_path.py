"""The whole path of recordings without a simulator: from the files of another tool to a server that answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import TINY, ddp, ok, ok_json
from data.test_lerobot_recording import write_v2, write_v3
from data.test_recordings import LENGTHS
from deploy.test_server import serving

from ddp_cli.data.store import Store
from ddp_cli.deploy.client import Client
from ddp_cli.deploy.runtime import Policy

pytestmark = pytest.mark.slow

SETTINGS = [f"--set={key}={value}" for key, value in {**TINY, "encoder": "small"}.items()]
JOINTS, RATE = 14, 50


def write_act(folder: Path) -> Path:
    """Episodes as ACT writes them, with camera images of 480x640. The joints are in ticks of their servos."""
    folder.mkdir()
    gradient = np.linspace(0, 200, 640, dtype=np.uint8)
    for i, n in enumerate(LENGTHS):
        rng = np.random.default_rng(i)
        with h5py.File(folder / f"episode_{i}.hdf5", "w") as f:
            for name in ("action", "observations/qpos"):
                f[name] = rng.uniform(0, 4095, (n, JOINTS))
            image = np.broadcast_to(gradient[None, None, :, None], (n, 480, 640, 3))
            f.create_dataset("observations/images/top", data=image + np.uint8(i), compression="gzip")
    return folder


@pytest.mark.parametrize(
    ("write", "cameras"),
    [
        (write_v3, {"top": (32, 48, 3), "left_wrist": (16, 24, 3), "right_wrist": (24, 16, 3)}),
        (write_act, {"top": (480, 640, 3)}),
    ],
)
def test_from_a_recording_to_a_server(
    write: Callable[[Path], Path],
    cameras: dict[str, tuple[int, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("peg"))
    ok(ddp("convert", "peg"))
    command = ("train", "--task", "peg", "--steps", 2, "--name", "a", "--preset", "laptop", *SETTINGS)
    output = ok(ddp(*command, "--set", "crop_ratio=1")).output
    assert ("top: images of 480x640 are resized to 96x128" in " ".join(output.split())) == (write is write_act)
    report = ok_json("eval")
    assert (report["task"], report["rate"], list(report["parts"])) == ("peg", RATE, ["action"])
    assert len(report["parts"]["action"]["values"]) == JOINTS
    ok(ddp("export", "--out", "policy"))
    policy = Policy.load("policy")
    # The robot sends what its cameras record, also where the policy was trained on smaller images.
    obs = {key: np.zeros(shape, np.uint8) for key, shape in cameras.items()}
    obs |= {key: np.zeros(JOINTS, np.float32) for key in policy.obs if key not in cameras}
    with serving(policy) as (address, _), Client(address.removeprefix("ws://")) as client:
        chunk = client.chunk([obs])
        assert chunk.shape == (policy.n_action_steps, JOINTS)
        assert client.action(obs).shape == (JOINTS,)
    actions = Store(Path("data/peg.zarr")).read("action")
    margin = 0.05 * np.ptp(actions, axis=0) + 1e-5
    assert (chunk >= actions.min(0) - margin).all()
    assert (chunk <= actions.max(0) + margin).all()


def test_both_lerobot_formats_give_the_same_store(tmp_path: Path) -> None:
    stores = []
    for name, write in (("v2", write_v2), ("v3", write_v3)):
        write(tmp_path / name)
        ok(ddp("convert", tmp_path / name, "--task", "peg", "--out", tmp_path / f"{name}.zarr"))
        stores.append(Store(tmp_path / f"{name}.zarr"))
    first, second = stores
    assert first.task == second.task
    for key in (*first.image_keys, "state", "action"):
        np.testing.assert_array_equal(first.read(key), second.read(key))
