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
from ddp_cli.data.recorded_observations import reason_unusable
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
    assert len(simulators) == 2  # of the checks: none to render
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
            r"of demo_0 has shape \(42, 42, 3\), expected \(84, 84, 3\)",
        ),
        ("agentview_image", lambda x: x / 250, r"of demo_0 is float64: .* has values between the 256 levels"),
        ("agentview_image", lambda x: x / 255 * 2 - 1, r"of demo_0 is float64: .* has values from -0.9"),
        ("robot0_eef_quat", lambda x: x[:, :3], r"obs/robot0_eef_quat of demo_0 has shape \(3,\), expected \(4,\)"),
    ],
)
def test_the_reason_why_observations_are_unusable_is_named(
    image_file: Path, tmp_path: Path, key: str, change: Any, reason: str
) -> None:
    with DemoFile(with_changed_obs(image_file, tmp_path, key, change)) as file:
        assert re.search(reason, reason_unusable(file, key, file.names))


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
        f["data"].attrs["env_args"] = text.replace("OSC_POSE", "MPC")
    with pytest.raises(DataError, match="controller is 'MPC'"):
        convert(path, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE)
    with h5py.File(path, "r+") as f:
        f["data"].attrs["env_args"] = text.replace('"input_type": "delta"', '"input_type": "absolute"').replace(
            '"input_ref_frame": "base"', '"input_ref_frame": "world"'
        )
    with pytest.raises(DataError, match="absolute actions \\(control_delta is off\\). Leave --actions out"):
        convert(path, tmp_path / "s.zarr", 1, no_progress, ConvertOptions(actions="delta"))


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
            del demo["intended"]
    convert_command = ["convert", "d.hdf5", "--out", "s.zarr", "--obs", "state", "--check", "1", "--workers", "1"]
    assert "warning: check failed" in ok(ddp(*convert_command)).stderr
    train = ["train", "--task", "lift", "--obs", "state", "--data", "s.zarr", "--steps", "1", "--preset", "laptop"]
    small = ["--set", "n_emb=16", "--set", "batch_size=4", "--set", "fusion=0"]
    assert "failed its replay check" in refused(ddp(*train, *small))
    assert not Path("runs").exists()
    assert "check failed" in ok(ddp(*train, *small, "--allow-unverified")).stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 3, 1, 2),
        lambda x: (x / 255).astype(np.float32),
        lambda x: (x / 255).astype(np.float16),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.int64).transpose(0, 3, 1, 2),
    ],
    ids=["channels first", "float32 of 0..1", "float16 of 0..1", "float64 of 0..255", "int64, channels first"],
)
def test_images_in_other_forms_are_copied_exactly(image_file: Path, tmp_path: Path, change: Any) -> None:
    path = with_changed_obs(image_file, tmp_path, "agentview_image", change)
    result = convert(path, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE)
    assert "agentview_image" in result.observations
    store = Store(tmp_path / "s.zarr")
    assert store.attrs["render"] == "full"
    with h5py.File(image_file) as f:
        recorded = np.concatenate([f[f"data/{name}/obs/agentview_image"][:] for name in ("demo_0", "demo_1")])
    np.testing.assert_array_equal(store.read("agentview_image"), recorded)


def test_images_that_cannot_be_copied_are_rendered_and_the_report_says_why(image_file: Path, tmp_path: Path) -> None:
    path = with_changed_obs(image_file, tmp_path, "agentview_image", lambda x: x.repeat(3, 1).repeat(3, 2))
    output = ok(ddp("convert", path, "--out", tmp_path / "s.zarr", "--workers", 1)).output
    assert "robot0_eye_in_hand_image copied from the file, the others rendered" in output
    assert (
        "not copied: agentview_image (obs/agentview_image of demo_0 has shape (252, 252, 3), expected (84, 84, 3))"
        in output
    )


def in_demo_1(image_file: Path, tmp_path: Path, key: str, change: Any) -> Path:
    """A copy in which `change` was applied to an observation of demo_1 only, as in a file merged from two."""
    path = with_changed_obs(image_file, tmp_path, key, lambda x: x)
    with h5py.File(path, "r+") as f:
        value = change(f[f"data/demo_1/obs/{key}"][:])
        del f[f"data/demo_1/obs/{key}"]
        f[f"data/demo_1/obs/{key}"] = value
    return path


def test_images_of_one_demo_that_are_upside_down_fail_the_check_or_are_skipped(
    image_file: Path, tmp_path: Path
) -> None:
    """Also where another demo is the one that is replayed."""
    path = in_demo_1(image_file, tmp_path, "agentview_image", lambda x: x[:, ::-1])
    check = convert(path, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE).check
    assert (check["result"], check["demos"][0]["demo"], len(check["demos"])) == ("failed", "demo_0", 1)
    assert "the images of 1 of 2 demos do not match" in check["why"]
    assert "demo_1: agentview_image is upside down" in check["why"]
    assert "--rerender" in check["why"]
    options = ConvertOptions(check=1, skip_bad=True)
    result = convert(path, tmp_path / "t.zarr", 1, no_progress, options)
    assert (result.episodes, result.check["result"]) == (1, "passed")
    assert result.left_out == {"demo_1": "agentview_image is upside down"}
    with h5py.File(path, "r+") as f:
        f["data/demo_0/obs/agentview_image"][:] = f["data/demo_0/obs/agentview_image"][:][:, ::-1]
    with pytest.raises(DataError, match="the images of every demo differ .*demo_0: agentview_image is upside down"):
        convert(path, tmp_path / "u.zarr", 1, no_progress, options)


def test_faults_that_begin_in_the_middle_of_a_demo_are_found(
    image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "MIN_COMPARED_STEPS", 1)  # as in a file of many demos

    def black_from_the_middle(images: np.ndarray) -> np.ndarray:
        images[len(images) * 3 // 5 :] = 0
        return images

    def moved_from_the_middle(values: np.ndarray) -> np.ndarray:
        values[len(values) * 3 // 5 :] += 0.3
        return values

    black = in_demo_1(image_file, tmp_path, "agentview_image", black_from_the_middle)
    check = convert(black, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE).check
    assert check["result"] == "failed"
    assert "demo_1: agentview_image" in check["why"]
    moved = in_demo_1(image_file, tmp_path, "robot0_eef_pos", moved_from_the_middle)
    result = convert(moved, tmp_path / "t.zarr", 1, no_progress, CHECK_ONE)
    assert result.computed == {"robot0_eef_pos": "its values differ from the simulator's in demo_1"}


def test_values_of_one_demo_that_differ_are_recomputed(image_file: Path, lift_store: Store, tmp_path: Path) -> None:
    path = in_demo_1(image_file, tmp_path, "robot0_eef_quat", lambda x: -x)
    result = convert(path, tmp_path / "s.zarr", 1, no_progress, CHECK_ONE)
    assert result.computed == {"robot0_eef_quat": "its values differ from the simulator's in demo_1"}
    np.testing.assert_array_equal(
        Store(tmp_path / "s.zarr").read("robot0_eef_quat"), lift_store.read("robot0_eef_quat")
    )


@pytest.mark.parametrize(
    ("key", "change", "fault"),
    [
        ("robot0_eef_pos", lambda x: np.where(np.arange(len(x))[:, None] == 5, np.nan, x), "is not finite"),
        ("robot0_eef_quat", lambda x: x * 1.42, "quaternion of step .* has norm 1.42, expected 1"),
        ("agentview_image", lambda x: x[:-1], r"has \d+ steps for \d+ actions"),
    ],
)
def test_invalid_observations_are_found_before_copying_and_skipped(
    image_file: Path, tmp_path: Path, key: str, change: Any, fault: str
) -> None:
    path = in_demo_1(image_file, tmp_path, key, change)
    with pytest.raises(DataError, match=f"demo_1: obs/{key}.*{fault}.*--skip-bad"):
        convert(path, tmp_path / "s.zarr", 1, no_progress, ConvertOptions(check=0))
    result = convert(path, tmp_path / "s.zarr", 1, no_progress, ConvertOptions(check=0, skip_bad=True))
    assert (result.episodes, list(result.left_out)) == (1, ["demo_1"])
    assert "ddp convert" not in result.left_out["demo_1"]
