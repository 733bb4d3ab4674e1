"""Files with recorded observations: they are copied, not rendered."""

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
from ddp_cli.data.actions import rotation_6d_to_axis_angle
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.sim.simulator import Simulator

pytestmark = pytest.mark.slow

CHECK_ONE = ConvertOptions(check=1)


def no_progress(*_: object) -> None:
    """A progress callback that does nothing."""


@pytest.fixture(scope="module")
def image_file(lift_demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demos with observations, as in robomimic's image files: rendered by robosuite, beside states and actions."""
    path = tmp_path_factory.mktemp("recorded") / "image.hdf5"
    shutil.copy(lift_demos, path)
    with DemoFile(lift_demos) as file, h5py.File(path, "r+") as f:
        sim = Simulator(file.task, "full")
        for demo in file:
            sim.load_xml(demo.xml)
            frames = []
            for state in demo.states:
                sim.set_kinematic_state(state)
                frames.append(sim.observe("image") | sim.low_dim())
            for key in frames[0]:
                f[f"data/{demo.name}/obs/{key}"] = np.stack([frame[key] for frame in frames])
        f["mask/valid"] = np.array([b"demo_1"])
        sim.close()
    return path


def with_changed_obs(image_file: Path, tmp_path: Path, key: str, change: Any) -> Path:
    """A copy in which `change` was applied to the observation `key`; None removes it."""
    path = tmp_path / "changed.hdf5"
    shutil.copy(image_file, path)
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            value = change(demo[f"obs/{key}"][:])
            del demo[f"obs/{key}"]
            if value is not None:
                demo[f"obs/{key}"] = value
    return path


def test_recorded_observations_are_copied_from_the_file(
    image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulators: list[Simulator] = []

    def count_simulators(*args: Any, **kwargs: Any) -> Simulator:
        simulators.append(Simulator(*args, **kwargs))
        return simulators[-1]

    monkeypatch.setattr(conversion, "Simulator", count_simulators)
    result = convert(image_file, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE)
    store = Store(tmp_path / "s.zarr")
    with h5py.File(image_file) as f:
        for key in ("agentview_image", "robot0_eye_in_hand_image", "object", "robot0_eef_pos"):
            recorded = np.concatenate([f[f"data/{name}/obs/{key}"][:] for name in ("demo_0", "demo_1")])
            np.testing.assert_array_equal(store.read(key), recorded)
    assert len(simulators) == 1  # of the check: none to render
    assert store.attrs["render"] == "full"  # the profile of rollouts, too
    assert (store.check["result"], store.check["psnr"]) == ("passed", 99.0)
    assert store.attrs["source"]["observations"] == list(result.observations)


def test_rerender_renders_recorded_images_again(image_file: Path, lift_store: Store, tmp_path: Path) -> None:
    result = convert(image_file, tmp_path / "s.zarr", 1, no_progress, ConvertOptions(rerender=True, check=0))
    store = Store(tmp_path / "s.zarr")
    assert (result.observations, store.attrs["render"]) == ((), "fast")
    np.testing.assert_array_equal(store.read("agentview_image"), lift_store.read("agentview_image"))


def test_absolute_actions_are_computed_and_recorded_images_copied(image_file: Path, tmp_path: Path) -> None:
    convert(image_file, tmp_path / "s.zarr", 1, no_progress, ConvertOptions(actions="absolute", check=0))
    store = Store(tmp_path / "s.zarr")
    assert store.shape("action")[1] == 10
    with h5py.File(image_file) as f:
        np.testing.assert_array_equal(store.read("agentview_image")[0], f["data/demo_0/obs/agentview_image"][0])


def test_observations_that_differ_from_a_rollout_are_recomputed(
    image_file: Path, lift_store: Store, tmp_path: Path
) -> None:
    """robosuite 1.5 reversed the order of `object`, and its relative poses lag a step behind."""
    path = with_changed_obs(image_file, tmp_path, "object", lambda x: x[:, ::-1])
    result = convert(path, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE)
    assert "object" not in result.observations
    assert "agentview_image" in result.observations
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("object"), lift_store.read("object"))


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("agentview_image", lambda _: None, "no obs/agentview_image"),
        (
            "agentview_image",
            lambda x: x[:, ::2, ::2],
            r"of demo_0 is \(42, 42, 3\) uint8, expected \(84, 84, 3\) uint8",
        ),
        ("agentview_image", lambda x: x / 255, r"obs/agentview_image of demo_0 is \(84, 84, 3\) float64"),
        ("robot0_eef_quat", lambda x: x[:, :3], r"obs/robot0_eef_quat of demo_0 is \(3,\) float32, expected \(4,\)"),
    ],
)
def test_the_reason_why_observations_are_unusable_is_named(
    image_file: Path, tmp_path: Path, key: str, change: Any, reason: str
) -> None:
    with DemoFile(with_changed_obs(image_file, tmp_path, key, change)) as file:
        assert re.search(reason, file.reason_unusable(key, file.names))


def test_flipped_images_fail_the_check(image_file: Path, tmp_path: Path) -> None:
    path = with_changed_obs(image_file, tmp_path, "agentview_image", lambda x: x[:, ::-1])
    result = convert(path, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE)
    assert result.check["result"] == "failed"
    assert "PSNR" in result.check["why"]


def test_observations_of_wrong_length_or_not_finite_are_refused(image_file: Path, tmp_path: Path) -> None:
    for change, message in ((lambda x: x[:-1], "for .* actions"), (lambda x: x * np.nan, "is not finite")):
        path = with_changed_obs(image_file, tmp_path, "robot0_eef_pos", change)
        with pytest.raises(DataError, match=f"demo_0.*{message}"):
            convert(path, tmp_path / "s.zarr", 1, no_progress, ConvertOptions(check=0))
        assert [p.name for p in tmp_path.iterdir()] == ["changed.hdf5"]


def test_a_filter_key_and_a_slice_select_demos(image_file: Path, tmp_path: Path) -> None:
    for options in (ConvertOptions("state", filter_key="valid", check=0), ConvertOptions("state", only="1:", check=0)):
        convert(image_file, tmp_path / "s.zarr", 1, no_progress, options)
        assert Store(tmp_path / "s.zarr").attrs["source"]["demos"] == ["demo_1"]


def test_other_controllers_are_refused(lift_demos: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    shutil.copy(lift_demos, path)
    with h5py.File(path, "r+") as f:
        text = f["data"].attrs["env_args"]
        f["data"].attrs["env_args"] = text.replace("OSC_POSE", "JOINT_VELOCITY")
    with pytest.raises(DataError, match="controller is 'JOINT_VELOCITY'"):
        convert(path, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE)
    with h5py.File(path, "r+") as f:
        f["data"].attrs["env_args"] = text.replace('"input_type": "delta"', '"input_type": "absolute"').replace(
            '"input_ref_frame": "base"', '"input_ref_frame": "world"'
        )
    with pytest.raises(DataError, match="absolute actions.*--actions absolute"):
        convert(path, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE)


def test_recorded_absolute_actions_are_stored(lift_demos: Path, tmp_path: Path) -> None:
    """Recorded with axis-angle rotations, they equal the absolute actions computed from delta actions."""
    convert(lift_demos, tmp_path / "computed.zarr", 1, no_progress, ConvertOptions("state", "absolute", check=0))
    path = tmp_path / "d.hdf5"
    shutil.copy(lift_demos, path)
    with DemoFile(lift_demos) as file, h5py.File(path, "r+") as f:
        sim = Simulator(file.task)
        for demo in file:
            goals = []
            for state, action in zip(demo.states, demo.target_actions, strict=True):
                sim.set_state(state)
                goals.append(sim.absolute_goal(action))
            f[f"data/{demo.name}/actions"][:] = rotation_6d_to_axis_angle(np.stack(goals))
            del f[f"data/{demo.name}/intended"]
        sim.close()
        f["data"].attrs["env_args"] = (
            f["data"]
            .attrs["env_args"]
            .replace('"input_type": "delta"', '"input_type": "absolute"')
            .replace('"input_ref_frame": "base"', '"input_ref_frame": "world"')
        )
    convert(path, tmp_path / "recorded.zarr", 1, no_progress, ConvertOptions("state", "absolute", check=0))
    np.testing.assert_allclose(
        Store(tmp_path / "recorded.zarr").read("action"), Store(tmp_path / "computed.zarr").read("action"), atol=1e-6
    )


def test_training_refuses_a_failed_check(lift_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(lift_demos, "d.hdf5")
    with h5py.File("d.hdf5", "r+") as f:
        for demo in f["data"].values():
            demo["actions"][:, :3] *= -1
    convert_command = ["convert", "d.hdf5", "--out", "s.zarr", "--obs", "state", "--check", "1", "--workers", "1"]
    assert "warning: check failed" in ok(ddp(*convert_command)).stderr
    train = ["train", "--task", "lift", "--obs", "state", "--data", "s.zarr", "--steps", "1", "--preset", "laptop"]
    small = ["--set", "n_emb=16", "--set", "batch_size=4", "--set", "fusion=0"]
    assert "failed its replay check" in refused(ddp(*train, *small))
    assert not Path("runs").exists()
    assert "check failed" in ok(ddp(*train, *small, "--allow-unverified")).stderr
