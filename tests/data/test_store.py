from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numcodecs
import numpy as np
import pytest
from conftest import DOOR

from ddp_cli.data import store_writer
from ddp_cli.data.store import Store, find_task
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import ConfigError, DataError
from ddp_cli.tasks import Task, get_task, task_from_json

TASK = get_task("lift")
ATTRIBUTES = {
    "render": "fast",
    "obs": "image",
    "env_args": {},
    "versions": {},
    "action": {"dim": 7},
    "source": {"sha256": "x", "demos": ["demo_0"]},
}


def episode(length: int, seed: int, task: Task = TASK) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {k: rng.integers(0, 256, (length, 84, 84, 3)).astype(np.uint8) for k in task.images("image")}
    arrays |= {k: rng.normal(size=(length, w)).astype(np.float32) for k, w in task.vectors("state").items()}
    return arrays | {"action": rng.normal(size=(length, 7)).astype(np.float32)}


def write(path: Path, lengths: list[int], zarr_format: int = 3, task: Task = TASK) -> Path:
    writer = StoreWriter(path, task, lengths, ATTRIBUTES, zarr_format)
    for i, length in enumerate(lengths):
        writer.append(episode(length, i, task))
    writer.finish({})
    return path


def begin(path: Path, task: Task = TASK) -> None:
    """The first of two episodes."""
    writer = StoreWriter(path, task, [70, 5], ATTRIBUTES, 3)
    writer.append(episode(70, 0, task))
    writer.flush()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_round_trip_is_lossless(tmp_path: Path, zarr_format: int) -> None:
    lengths = [70, 5, 130]  # episodes that share chunks of 64 frames
    store = Store(write(tmp_path / "s.zarr", lengths, zarr_format))
    assert store.episode_ends.tolist() == [70, 75, 205]
    for key in episode(1, 0):
        expected = np.concatenate([episode(length, i)[key] for i, length in enumerate(lengths)])
        np.testing.assert_array_equal(store.read(key), expected)


def read_format_2(array: Path) -> np.ndarray:
    """An array by the rules of zarr's specification 2, and nothing of the zarr library."""
    said = json.loads((array / ".zarray").read_text())
    assert (said["zarr_format"], said["order"], said["filters"]) == (2, "C", None)
    codec = numcodecs.get_codec(said["compressor"])
    whole = np.full(said["shape"], said["fill_value"], said["dtype"])
    for at in itertools.product(*(range(-(-n // c)) for n, c in zip(said["shape"], said["chunks"], strict=True))):
        chunk = array / said.get("dimension_separator", ".").join(map(str, at))
        if chunk.exists():
            decoded = np.frombuffer(codec.decode(chunk.read_bytes()), said["dtype"]).reshape(said["chunks"])
            place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(at, said["chunks"], strict=True))
            part = whole[place]
            part[...] = decoded[tuple(slice(n) for n in part.shape)]
    return whole


def test_format_2_is_what_published_tools_open(tmp_path: Path) -> None:
    """A replay buffer: data/<key> and meta/episode_ends, in groups and arrays of zarr 2."""
    lengths = [70, 5, 130]
    path = write(tmp_path / "s.zarr", lengths, 2)
    for group in (path, path / "data", path / "meta"):
        assert json.loads((group / ".zgroup").read_text()) == {"zarr_format": 2}
    assert json.loads((path / ".zattrs").read_text())["task"] == "lift"
    np.testing.assert_array_equal(read_format_2(path / "meta/episode_ends"), np.cumsum(lengths))
    for key in episode(1, 0):
        expected = np.concatenate([episode(length, i)[key] for i, length in enumerate(lengths)])
        np.testing.assert_array_equal(read_format_2(path / "data" / key), expected)


def test_an_interrupted_store_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    begin(path)
    assert not path.exists()
    writer = StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3)
    assert writer.episodes == 1
    writer.append(episode(5, 1))
    writer.finish({})
    np.testing.assert_array_equal(Store(path).read("action")[:70], episode(70, 0)["action"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [1, 2, 3]), (1e9, [0, 0, 0])])
def test_what_is_not_flushed_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    """A process that is killed leaves chunks, and counts the episodes that it flushed, which it does ever so often."""
    monkeypatch.setattr(store_writer, "SECONDS_AT_RISK", seconds)
    path, lengths = tmp_path / "s.zarr", [170, 75, 130, 64]
    writer = StoreWriter(path, TASK, lengths, ATTRIBUTES, 3)
    counts = []
    for i, length in enumerate(lengths[:3]):
        writer.append(episode(length, i))
        counts.append(writer.episodes)
    assert counts == expected
    writer = StoreWriter(path, TASK, lengths, ATTRIBUTES, 3)
    assert writer.episodes == counts[-1]
    for i in range(writer.episodes, 4):
        writer.append(episode(lengths[i], i))
    writer.finish({})
    for key in episode(1, 0):
        expected_rows = np.concatenate([episode(length, i)[key] for i, length in enumerate(lengths)])
        np.testing.assert_array_equal(Store(path).read(key), expected_rows)


def test_a_chunk_that_is_written_again_is_always_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill may come while a chunk that already holds counted rows is replaced."""
    path = tmp_path / "s.zarr"
    begin(path)  # 70 of 75 rows: the second chunk is not full
    write_bytes, replace = Path.write_bytes, Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.parent.parent.name == "data":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "write_bytes", lambda self, data: write_bytes(self, data[: len(data) // 2]))
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3) as writer:
        writer.append(episode(5, 1))
    monkeypatch.undo()
    writer = StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3)
    assert writer.episodes == 1
    writer.append(episode(5, 1))
    writer.finish({})
    for key in episode(1, 0):
        np.testing.assert_array_equal(Store(path).read(key), np.concatenate([episode(70, 0)[key], episode(5, 1)[key]]))
    assert not list(path.rglob("*.partial"))


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole chunks are written by threads; that the disk was full for one of them is heard of all the same."""
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "c.3.0.0.0.partial":
            raise OSError(28, "No space left on device")
        return write_bytes(self, data)

    path = tmp_path / "s.zarr"
    with pytest.raises(OSError, match="No space left"), StoreWriter(path, TASK, [640, 5], ATTRIBUTES, 3) as writer:
        monkeypatch.setattr(Path, "write_bytes", full)
        for length in (640, 5):
            writer.append(episode(length, 0))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_was_whole_but_not_yet_named_is_not_made_again(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", [70, 5])
    path.rename(tmp_path / "s.zarr.partial")
    writer = StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3)
    assert writer.episodes == 2
    writer.finish({})
    assert Store(path).read("action").shape == (75, 7)


def test_other_attributes_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    begin(path)
    assert StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3).episodes == 1
    assert StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 2).episodes == 0
    assert StoreWriter(path, TASK, [70, 5], ATTRIBUTES | {"render": "full"}, 2).episodes == 0


def damaged(path: Path, kind: str) -> Path:
    meta = path / "zarr.json"
    content = json.loads(meta.read_text())
    if kind == "absent":
        shutil.rmtree(path)
    elif kind == "a file":
        shutil.rmtree(path)
        path.write_text("x")
    elif kind == "an empty folder":
        shutil.rmtree(path)
        path.mkdir()
    elif kind == "other version":
        content["attributes"]["format"] = 7
        meta.write_text(json.dumps(content))
    elif kind == "foreign":
        content["attributes"] = {}
        meta.write_text(json.dumps(content))
    elif kind == "unfinished":
        content["attributes"]["complete"] = False
        meta.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("absent", "no store"),
        ("a file", "not a zarr store"),
        ("an empty folder", "not a zarr store"),
        ("other version", "store format 7, this ddp reads format 1"),
        ("foreign", "`ddp convert` did not make"),
        ("unfinished", "not complete"),
    ],
)
def test_every_fault_is_named(tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Store(damaged(write(tmp_path / "s.zarr", [3]), kind))


def test_missing_and_damaged_arrays_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", [3])
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


def test_a_built_in_task_is_kept_as_its_name(tmp_path: Path) -> None:
    attributes = json.loads((write(tmp_path / "s.zarr", [3]) / "zarr.json").read_text())["attributes"]
    assert attributes["task"] == "lift"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_described_task_is_kept_whole(tmp_path: Path, zarr_format: int) -> None:
    task = task_from_json(DOOR | {"cameras": {"z_image": "frontview", "a_image": "agentview"}})
    store = Store(write(tmp_path / "s.zarr", [3], zarr_format, task))
    assert store.task == task
    assert json.dumps(store.task.to_json()) == json.dumps(task.to_json())  # in the same order
    assert store.read("object").shape == (3, 7)
    assert store.read("z_image").shape == (3, 84, 84, 3)


def test_without_an_object_there_is_no_such_array(tmp_path: Path) -> None:
    store = Store(write(tmp_path / "s.zarr", [3], task=task_from_json(DOOR | {"object": {}})))
    with pytest.raises(DataError, match="no array data/object"):
        store.read("object")


def test_another_description_begins_anew(tmp_path: Path) -> None:
    path, task = tmp_path / "s.zarr", task_from_json(DOOR)
    begin(path, task)
    assert StoreWriter(path, task, [70, 5], ATTRIBUTES, 3).episodes == 1
    other = task_from_json(DOOR | {"cameras": {"frontview_image": "sideview"}})
    assert StoreWriter(path, other, [70, 5], ATTRIBUTES, 3).episodes == 0


def test_a_store_is_of_one_task(tmp_path: Path) -> None:
    store = Store(write(tmp_path / "s.zarr", [3], task=task_from_json(DOOR)))
    store.check_task(task_from_json(DOOR))
    store.check_task(task_from_json(DOOR | {"horizon": 500}))  # how long rollouts last is another matter
    with pytest.raises(ConfigError, match="demos of 'door', not of 'lift'. Train with --task door"):
        store.check_task(get_task("lift"))
    with pytest.raises(ConfigError, match=r"another 'door': object .*hinge_qpos.* instead of \{\}"):
        store.check_task(task_from_json(DOOR | {"object": {}}))


def test_a_store_knows_its_task_without_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", [3], task=task_from_json(DOOR))
    assert find_task("door", path) == task_from_json(DOOR)
    assert find_task("lift", path) is TASK
    assert find_task("lift", tmp_path / "none.zarr") is TASK
    for text, store in (("dor", path), ("door", tmp_path / "none.zarr")):
        with pytest.raises(ConfigError, match=f"unknown task '{text}'"):
            find_task(text, store)


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", [3], task=task_from_json(DOOR))
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"]["task"]["horizon"] = -1
    (path / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="s.zarr': horizon is -1"):
        Store(path)
