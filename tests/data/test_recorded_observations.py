"""Files that hold what was seen: it is taken from them, not drawn."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import ddp, ok, refused

from ddp_cli.data import conversion
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.inspection import inspect_file, rows
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.rotation import matrix_from_6d, matrix_to_rotvec
from ddp_cli.sim.simulator import Simulator

ONE = ConvertOptions(check=1)


def quiet(*_: object) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def seen(lift_demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As robomimic writes image files: what robosuite drew beside states and actions."""
    path = tmp_path_factory.mktemp("seen") / "image.hdf5"
    shutil.copy(lift_demos, path)
    with DemoFile(lift_demos) as file, h5py.File(path, "r+") as f:
        sim = Simulator(file.task, "full")
        for demo in file:
            sim.load_xml(demo.xml)
            frames = []
            for state in demo.states:
                sim.show_state(state)
                frames.append(sim.observe("image") | sim.low_dim())
            for key in frames[0]:
                f[f"data/{demo.name}/obs/{key}"] = np.stack([frame[key] for frame in frames])
        f["mask/valid"] = np.array([b"demo_1"])
        sim.close()
    return path


def changed(seen: Path, tmp_path: Path, key: str, change: Any) -> Path:
    path = tmp_path / "changed.hdf5"
    shutil.copy(seen, path)
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            value = change(demo[f"obs/{key}"][:])
            del demo[f"obs/{key}"]
            if value is not None:
                demo[f"obs/{key}"] = value
    return path


def test_pictures_are_taken_from_the_file(seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "_looker", lambda *_: pytest.fail("a simulator was asked"))
    done = convert(seen, tmp_path / "s.zarr", 1, quiet, ONE)
    store = Store(tmp_path / "s.zarr")
    with h5py.File(seen) as f:
        for key in ("agentview_image", "robot0_eye_in_hand_image", "object", "robot0_eef_pos"):
            recorded = np.concatenate([f[f"data/{name}/obs/{key}"][:] for name in ("demo_0", "demo_1")])
            np.testing.assert_array_equal(store.read(key), recorded)
    assert store.attrs["render"] == "full"  # which is how rollouts then see
    assert (store.check["result"], store.check["psnr"]) == ("passed", 99.0)
    assert store.attrs["source"]["observations"] == list(done.observations)


def test_drawn_anew_on_demand(seen: Path, lift_store: Store, tmp_path: Path) -> None:
    done = convert(seen, tmp_path / "s.zarr", 1, quiet, ConvertOptions(rerender=True, check=0))
    store = Store(tmp_path / "s.zarr")
    assert (done.observations, store.attrs["render"]) == ((), "fast")
    np.testing.assert_array_equal(store.read("agentview_image"), lift_store.read("agentview_image"))


def test_goals_are_computed_and_pictures_kept(seen: Path, tmp_path: Path) -> None:
    convert(seen, tmp_path / "s.zarr", 1, quiet, ConvertOptions(actions="absolute", check=0))
    store = Store(tmp_path / "s.zarr")
    assert store.shape("action")[1] == 10
    with h5py.File(seen) as f:
        np.testing.assert_array_equal(store.read("agentview_image")[0], f["data/demo_0/obs/agentview_image"][0])


def test_observations_that_a_rollout_would_not_see_are_made_anew(seen: Path, lift_store: Store, tmp_path: Path) -> None:
    """robosuite 1.5 turned the order of `object` around, and its relative poses lag behind."""
    path = changed(seen, tmp_path, "object", lambda x: x[:, ::-1])
    done = convert(path, tmp_path / "s.zarr", 1, quiet, ONE)
    assert "object" not in done.observations
    assert "agentview_image" in done.observations
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("object"), lift_store.read("object"))


@pytest.mark.parametrize(
    ("key", "change", "why"),
    [
        ("agentview_image", lambda _: None, "no obs/agentview_image"),
        ("agentview_image", lambda x: x[:, ::2, ::2], r"obs/agentview_image of \(42, 42, 3\)"),
        ("agentview_image", lambda x: x / 255, r"obs/agentview_image of"),
        ("robot0_eef_quat", lambda x: x[:, :3], r"obs/robot0_eef_quat of \(3,\) float32, not \(4,\)"),
    ],
)
def test_what_does_not_fit_is_drawn(seen: Path, tmp_path: Path, key: str, change: Any, why: str) -> None:
    with DemoFile(changed(seen, tmp_path, key, change)) as file:
        assert re.search(why, file.reason_unusable(key, file.names))


def test_pictures_that_are_upside_down_fail_the_check(seen: Path, tmp_path: Path) -> None:
    path = changed(seen, tmp_path, "agentview_image", lambda x: x[:, ::-1])
    done = convert(path, tmp_path / "s.zarr", 1, quiet, ONE)
    assert done.check["result"] == "failed"
    assert "PSNR" in done.check["why"]


def test_other_lengths_and_numbers_that_are_not_finite_are_refused(seen: Path, tmp_path: Path) -> None:
    for change, words in ((lambda x: x[:-1], "for .* actions"), (lambda x: x * np.nan, "is not finite")):
        path = changed(seen, tmp_path, "robot0_eef_pos", change)
        with pytest.raises(DataError, match=f"demo_0.*{words}"):
            convert(path, tmp_path / "s.zarr", 1, quiet, ConvertOptions(check=0))
        assert [p.name for p in tmp_path.iterdir()] == ["changed.hdf5"]


def test_a_filter_and_a_slice_choose(seen: Path, tmp_path: Path) -> None:
    for wanted in (ConvertOptions("state", subset="valid", check=0), ConvertOptions("state", only="1:", check=0)):
        convert(seen, tmp_path / "s.zarr", 1, quiet, wanted)
        assert Store(tmp_path / "s.zarr").attrs["source"]["demos"] == ["demo_1"]


def test_a_file_is_described(seen: Path, tmp_path: Path) -> None:
    with DemoFile(seen) as file:
        found = inspect_file(file)
    said = dict(rows(found))
    assert found["plan"] == "observations are taken from the file."
    assert (said["filters"], said["actions"]) == ("valid", "delta")
    assert "agentview_image" in said["observations"]
    assert "image.hdf5" in ok(ddp("convert", seen, "--inspect")).stdout


def test_controllers_that_are_not_ours_are_refused(lift_demos: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    shutil.copy(lift_demos, path)
    with h5py.File(path, "r+") as f:
        text = f["data"].attrs["env_args"]
        f["data"].attrs["env_args"] = text.replace("OSC_POSE", "JOINT_VELOCITY")
    with pytest.raises(DataError, match="controller is 'JOINT_VELOCITY'"):
        convert(path, tmp_path / "s.zarr", 1, quiet, ONE)
    with h5py.File(path, "r+") as f:
        f["data"].attrs["env_args"] = text.replace('"input_type": "delta"', '"input_type": "absolute"').replace(
            '"input_ref_frame": "base"', '"input_ref_frame": "world"'
        )
    with pytest.raises(DataError, match="absolute actions.*--actions absolute"):
        convert(path, tmp_path / "s.zarr", 1, quiet, ONE)


def test_absolute_actions_are_kept(lift_demos: Path, tmp_path: Path) -> None:
    """Recorded as position, axis-angle and gripper, they become what a conversion to absolute ones stores."""
    convert(lift_demos, tmp_path / "asked.zarr", 1, quiet, ConvertOptions("state", "absolute", check=0))
    path = tmp_path / "d.hdf5"
    shutil.copy(lift_demos, path)
    with DemoFile(lift_demos) as file, h5py.File(path, "r+") as f:
        sim = Simulator(file.task)
        for demo in file:
            goals = []
            for state, action in zip(demo.states, demo.target_actions, strict=True):
                sim.set_state(state)
                goals.append(sim.goal(action))
            goals = np.stack(goals)
            turns = [matrix_to_rotvec(matrix_from_6d(goal[3:9])) for goal in goals]
            f[f"data/{demo.name}/actions"][:] = np.concatenate([goals[:, :3], turns, goals[:, 9:]], axis=1)
            del f[f"data/{demo.name}/intended"]
        sim.close()
        f["data"].attrs["env_args"] = (
            f["data"]
            .attrs["env_args"]
            .replace('"input_type": "delta"', '"input_type": "absolute"')
            .replace('"input_ref_frame": "base"', '"input_ref_frame": "world"')
        )
    convert(path, tmp_path / "kept.zarr", 1, quiet, ConvertOptions("state", "absolute", check=0))
    np.testing.assert_allclose(
        Store(tmp_path / "kept.zarr").read("action"), Store(tmp_path / "asked.zarr").read("action"), atol=1e-6
    )


def test_training_refuses_what_failed(lift_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(lift_demos, "d.hdf5")
    with h5py.File("d.hdf5", "r+") as f:
        for demo in f["data"].values():
            demo["actions"][:, :3] *= -1
    said = ok(ddp("convert", "d.hdf5", "--out", "s.zarr", "--obs", "state", "--check", "1", "--workers", "1")).stderr
    assert "warning: check failed" in said
    train = ["train", "--task", "lift", "--obs", "state", "--data", "s.zarr", "--steps", "1", "--preset", "laptop"]
    small = ["--set", "n_emb=16", "--set", "batch_size=4", "--set", "fusion=0"]
    assert "failed its check" in refused(ddp(*train, *small))
    assert not Path("runs").exists()
    assert "check failed" in ok(ddp(*train, *small, "--allow-unverified")).stderr
