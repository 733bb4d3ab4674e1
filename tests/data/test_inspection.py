from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from conftest import Recorded, ddp, refused

from ddp_cli.data.inspection import describe_source, inspect_source
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.tasks import get_task


@pytest.fixture
def demos(lift_demos: Path, tmp_path: Path) -> Path:
    """A copy that tests may change."""
    return Path(shutil.copy(lift_demos, tmp_path / "lift.hdf5"))


def test_demo_file(demos: Path, lift_store: Store) -> None:
    contents = inspect_source(demos)
    lengths = np.diff(lift_store.episode_ends, prepend=0)
    assert sorted(contents) == [
        "actions", "bad", "controller", "demos", "environment", "filters", "kind", "lengths", "lint",
        "lint_images", "models", "notes", "observations", "obstacles", "plan", "policy_episodes", "ranges", "robosuite",
        "steps", "task",
    ]  # fmt: skip
    assert (contents["environment"], contents["task"], contents["demos"]) == ("Lift", "lift", 2)
    assert (contents["steps"], contents["lengths"][::2]) == (lengths.sum(), [lengths.min(), lengths.max()])
    assert (contents["actions"], contents["controller"], contents["models"]) == ("delta", "OSC_POSE", 2)
    assert contents["ranges"]["actions"][0] >= -1
    assert (contents["bad"], contents["obstacles"], contents["lint"]) == ({}, [], [])
    assert contents["plan"] == "renders all observations in the simulator."
    json.dumps(contents)
    rows = dict(describe_source(contents))
    assert rows["demonstrations"] == "2, 2 with a recorded model"
    assert rows["steps"].startswith(f"{lengths.sum()} (shortest {lengths.min()}, ")


def test_demo_file_with_recorded_observations_and_filter_keys(demos: Path, lift_store: Store) -> None:
    with h5py.File(demos, "r+") as file:
        for i, (begin, end) in enumerate(lift_store.episode_bounds):
            for key in (*lift_store.image_keys, *lift_store.task.vectors("state")):
                file[f"data/demo_{i}/obs/{key}"] = lift_store.read(key, rows=slice(begin, end))
        file["mask/valid"] = [b"demo_1"]
    contents = inspect_source(demos)
    assert contents["plan"] == "copies the observations from the file if they agree with the simulator's."
    rows = dict(describe_source(contents))
    assert (rows["filter keys"], rows["actions"]) == ("valid", "delta")
    assert "agentview_image" in rows["observations"]


def test_invalid_demos_are_listed(demos: Path) -> None:
    with h5py.File(demos, "r+") as file:
        file["data/demo_0/actions"][3, 2] = np.nan
    contents = inspect_source(demos)
    assert contents["bad"] == {"demo_0": "actions[3, 2] is nan."}
    assert ("invalid", "demo_0: actions[3, 2] is nan.") in describe_source(contents)
    assert contents["plan"].startswith("rejects this file: 1 demonstration is invalid. With --skip-bad it renders")
    with h5py.File(demos, "r+") as file:
        file["data/demo_1/actions"][3, 2] = np.nan
    assert inspect_source(demos)["plan"] == "rejects this file: none of 2 demos is valid."


def test_incompatible_controller_is_listed(demos: Path) -> None:
    with h5py.File(demos, "r+") as file:
        text = file["data"].attrs["env_args"]
        file["data"].attrs["env_args"] = text.replace("OSC_POSE", "MPC")
    contents = inspect_source(demos)
    assert "MPC" in contents["obstacles"][0]
    plan = dict(describe_source(contents))["ddp convert"]
    assert plan.startswith("rejects this file: controller is 'MPC', expected one of OSC_POSE, ")


def test_environment_that_robosuite_does_not_have(demos: Path) -> None:
    with h5py.File(demos, "r+") as file:
        file["data"].attrs["env_args"] = file["data"].attrs["env_args"].replace('"Lift"', '"Juggle"')
    contents = inspect_source(demos)
    assert contents["task"] == "none"
    assert contents["plan"].startswith("rejects this file: unknown robosuite environment 'Juggle'")


def test_a_task_from_a_file_describes_what_is_observed(door: Recorded) -> None:
    contents = inspect_source(door.demos, door.task)
    assert contents["task"] == "door"
    assert contents["plan"] == "renders all observations in the simulator."


def test_store(lift_store: Store) -> None:
    contents = inspect_source(lift_store.path)
    assert sorted(contents) == [
        "actions", "check", "episodes", "kind", "lengths", "lint", "lint_images", "observations", "render", "source",
        "steps", "task", "versions",
    ]  # fmt: skip
    assert (contents["kind"], contents["task"], contents["episodes"]) == ("ddp store", "lift", 2)
    assert contents["source"] == "lift.hdf5, 0 demonstrations skipped"
    assert contents["check"].startswith("passed")
    assert contents["lint_images"] == [2, 2]
    rows = dict(describe_source(contents))
    assert rows.pop("lint")
    assert rows == {key: str(value) for key, value in contents.items() if not key.startswith("lint")}


def test_other_sources_are_rejected(lift_store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file '.*nowhere'"):
        inspect_source(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="'.*notes.txt' is not an HDF5 file"):
        inspect_source(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="is a folder, but not a store or a LeRobot dataset"):
        inspect_source(tmp_path)
    with pytest.raises(DataError, match=r"--task does not apply to '.*lift.zarr', which is a zarr folder"):
        inspect_source(lift_store.path, get_task("lift"))


def test_folders_of_files_and_other_zarr_folders(demos: Path, tmp_path: Path) -> None:
    """`ddp inspect` and `ddp convert` give the same reason."""
    for command in ("inspect", "convert"):
        assert "is a folder with 1 HDF5 files. Name one of them: lift.hdf5." in refused(ddp(command, tmp_path))
    root = zarr.create_group(tmp_path / "buffer.zarr", zarr_format=2)
    root.create_array("data/img", data=np.zeros((30, 4, 4, 3), np.float32))
    contents = inspect_source(tmp_path / "buffer.zarr")
    assert contents["kind"] == "zarr folder (format 2), not written by ddp"
    assert "data/img (30, 4, 4, 3) float32" in contents["arrays"]
    assert contents["ddp convert"].startswith("rejects this folder: it has no data and meta/episode_ends")
    assert "not one written by `ddp convert`" in refused(ddp("convert", tmp_path / "buffer.zarr", "--out", "x.zarr"))
