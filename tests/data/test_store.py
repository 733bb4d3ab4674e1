from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numcodecs
import numpy as np
import pytest
from conftest import DOOR
from data.random_stores import TASK, expected_array, random_episode, write_store

from ddp_cli.data.store import Store, resolve_task
from ddp_cli.errors import ConfigError, DataError
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import get_task

LENGTHS = [70, 5, 130]  # episodes that share chunks of 64 images


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_round_trip_is_lossless(tmp_path: Path, zarr_format: int) -> None:
    store = Store(write_store(tmp_path / "s.zarr", LENGTHS, zarr_format))
    assert store.episode_ends.tolist() == [70, 75, 205]
    assert store.episode_bounds == [(0, 70), (70, 75), (75, 205)]
    for key in random_episode(1, 0):
        np.testing.assert_array_equal(store.read(key), expected_array(key, LENGTHS))


def read_zarr2_array(array: Path) -> np.ndarray:
    """Reads an array by zarr's specification 2, without the zarr library."""
    metadata = json.loads((array / ".zarray").read_text())
    assert (metadata["zarr_format"], metadata["order"], metadata["filters"]) == (2, "C", None)
    shape, chunks, dtype = metadata["shape"], metadata["chunks"], metadata["dtype"]
    codec = numcodecs.get_codec(metadata["compressor"])
    values = np.full(shape, metadata["fill_value"], dtype)
    for index in itertools.product(*(range(-(-n // c)) for n, c in zip(shape, chunks, strict=True))):
        chunk = array / metadata.get("dimension_separator", ".").join(map(str, index))
        if chunk.exists():
            decoded = np.frombuffer(codec.decode(chunk.read_bytes()), dtype).reshape(chunks)
            region = values[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))]
            region[...] = decoded[tuple(slice(n) for n in region.shape)]
    return values


def test_zarr_format_2_is_the_published_replay_buffer(tmp_path: Path) -> None:
    """data/<key> and meta/episode_ends, in groups and arrays of zarr 2."""
    path = write_store(tmp_path / "s.zarr", LENGTHS, 2)
    for group in (path, path / "data", path / "meta"):
        assert json.loads((group / ".zgroup").read_text()) == {"zarr_format": 2}
    assert json.loads((path / ".zattrs").read_text())["task"] == "lift"
    np.testing.assert_array_equal(read_zarr2_array(path / "meta/episode_ends"), np.cumsum(LENGTHS))
    for key in random_episode(1, 0):
        np.testing.assert_array_equal(read_zarr2_array(path / "data" / key), expected_array(key, LENGTHS))


def damaged(path: Path, kind: str) -> Path:
    metadata = path / "zarr.json"
    content = json.loads(metadata.read_text())
    if kind == "missing":
        shutil.rmtree(path)
    elif kind == "file":
        shutil.rmtree(path)
        path.write_text("x")
    elif kind == "empty folder":
        shutil.rmtree(path)
        path.mkdir()
    elif kind == "other format":
        content["attributes"]["format"] = 7
        metadata.write_text(json.dumps(content))
    elif kind == "foreign":
        content["attributes"] = {}
        metadata.write_text(json.dumps(content))
    elif kind == "lacks an attribute":
        del content["attributes"]["render"]
        metadata.write_text(json.dumps(content))
    elif kind == "incomplete":
        content["attributes"]["complete"] = False
        metadata.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no store"),
        ("file", "not a zarr store"),
        ("empty folder", "not a zarr store"),
        ("other format", "store format 7, this version of ddp reads format 2"),
        ("foreign", "not one written by `ddp convert`"),
        ("lacks an attribute", "lacks the attribute 'render'"),
        ("incomplete", "not complete"),
    ],
)
def test_faults_are_named(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Store(damaged(write_store(tmp_path / "s.zarr", [3]), kind))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("action", {}),
        ("action", {"convention": {"a": 1}, "dim": 7}),
        ("action", {"convention": "absolute", "dim": 7}),
        ("action", None),
        ("obs", "x"),
        ("obs", None),
        ("obs", []),
        ("render", "ful"),
        ("source", {"demos": 3, "sha256": ""}),
    ],
)
def test_damaged_attributes_are_named(tmp_path: Path, key: str, value: object) -> None:
    path = write_store(tmp_path / "s.zarr", [3])
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"][key] = value
    (path / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"the attribute '{key}' is damaged"):
        Store(path)


def test_missing_and_damaged_arrays_are_named(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr", [3])
    store = Store(path)
    chunk = next(
        p for p in (path / "data" / "robot0_eye_in_hand_image").rglob("*") if p.is_file() and p.name != "zarr.json"
    )
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(DataError, match="robot0_eye_in_hand_image is damaged"):
        store.read("robot0_eye_in_hand_image")
    shutil.rmtree(path / "data" / "action")
    with pytest.raises(DataError, match="no array data/action"):
        Store(path).read("action")


def test_built_in_task_is_stored_by_name(tmp_path: Path) -> None:
    attributes = json.loads((write_store(tmp_path / "s.zarr", [3]) / "zarr.json").read_text())["attributes"]
    assert attributes["task"] == "lift"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_described_task_is_stored_in_full(tmp_path: Path, zarr_format: int) -> None:
    task = task_from_json(DOOR | {"cameras": {"z_image": "frontview", "a_image": "agentview"}})
    store = Store(write_store(tmp_path / "s.zarr", [3], zarr_format, task))
    assert store.task == task
    assert json.dumps(store.task.to_json()) == json.dumps(task.to_json())  # in the same order
    assert store.read("object").shape == (3, 7)
    assert store.read("z_image").shape == (3, 84, 84, 3)


def test_store_of_a_task_without_object_has_no_such_array(tmp_path: Path) -> None:
    store = Store(write_store(tmp_path / "s.zarr", [3], task=task_from_json(DOOR | {"object": {}})))
    with pytest.raises(DataError, match="no array data/object"):
        store.read("object")


def test_check_task_rejects_other_tasks(tmp_path: Path) -> None:
    store = Store(write_store(tmp_path / "s.zarr", [3], task=task_from_json(DOOR)))
    store.check_task(task_from_json(DOOR))
    store.check_task(task_from_json(DOOR | {"horizon": 500}))  # the maximum length of rollouts may differ
    with pytest.raises(ConfigError, match="demonstrations of 'door', not of 'lift'. Train with --task door"):
        store.check_task(get_task("lift"))
    with pytest.raises(ConfigError, match=r"another version of the task 'door': object .*hinge_qpos.* instead of \{\}"):
        store.check_task(task_from_json(DOOR | {"object": {}}))


def test_task_is_resolved_from_the_store_without_its_file(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr", [3], task=task_from_json(DOOR))
    assert resolve_task("door", path) == task_from_json(DOOR)
    assert resolve_task("lift", path) is TASK
    assert resolve_task("lift", tmp_path / "none.zarr") is TASK
    assert resolve_task("door", tmp_path / "none.zarr") is get_task("door")
    for text, store in (("dor", path), ("none", tmp_path / "none.zarr")):
        with pytest.raises(ConfigError, match=f"unknown task '{text}'"):
            resolve_task(text, store)


def test_damaged_task_description_is_named(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr", [3], task=task_from_json(DOOR))
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"]["task"]["horizon"] = -1
    (path / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="s.zarr': horizon = -1"):
        Store(path)
