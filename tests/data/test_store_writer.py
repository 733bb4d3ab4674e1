from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import DOOR
from data.random_stores import ATTRIBUTES, TASK, expected_array, random_episode, write_partial_store, write_store

from ddp_cli.data import store_writer
from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import DataError
from ddp_cli.task_file import task_from_json


def test_interrupted_store_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    write_partial_store(path)
    assert not path.exists()
    writer = StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3)
    assert writer.episodes == 1
    writer.append(random_episode(5, 1))
    writer.finish({})
    np.testing.assert_array_equal(Store(path).read("action")[:70], random_episode(70, 0)["action"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("interval", "expected"), [(0.0, [1, 2, 3]), (1e9, [0, 0, 0])])
def test_unflushed_episodes_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: float, expected: list[int]
) -> None:
    """A killed process leaves chunks behind, but counts only the episodes it flushed, which it does at an interval."""
    monkeypatch.setattr(store_writer, "FLUSH_INTERVAL_S", interval)
    path, lengths = tmp_path / "s.zarr", [170, 75, 130, 64]
    writer = StoreWriter(path, TASK, lengths, ATTRIBUTES, 3)
    counts = []
    for i, length in enumerate(lengths[:3]):
        writer.append(random_episode(length, i))
        counts.append(writer.episodes)
    assert counts == expected
    writer = StoreWriter(path, TASK, lengths, ATTRIBUTES, 3)
    assert writer.episodes == counts[-1]
    for i in range(writer.episodes, 4):
        writer.append(random_episode(lengths[i], i))
    writer.finish({})
    for key in random_episode(1, 0):
        np.testing.assert_array_equal(Store(path).read(key), expected_array(key, lengths))


def test_rewritten_chunks_are_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be killed while it replaces a chunk that holds rows of counted episodes."""
    path = tmp_path / "s.zarr"
    write_partial_store(path)  # 70 of 75 rows: the second chunk is incomplete
    write_bytes, replace = Path.write_bytes, Path.replace

    def interrupted_replace(self: Path, target: Path) -> Path:
        if self.parent.parent.name == "data":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "write_bytes", lambda self, data: write_bytes(self, data[: len(data) // 2]))
    monkeypatch.setattr(Path, "replace", interrupted_replace)
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3) as writer:
        writer.append(random_episode(5, 1))
    monkeypatch.undo()
    writer = StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3)
    assert writer.episodes == 1
    writer.append(random_episode(5, 1))
    writer.finish({})
    for key in random_episode(1, 0):
        np.testing.assert_array_equal(Store(path).read(key), expected_array(key, [70, 5]))
    assert not list(path.rglob("*.partial"))


def test_a_full_disk_leaves_the_complete_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes with a chunk that could not be written do not count, also if it is noticed later."""
    path, lengths, write_bytes = tmp_path / "s.zarr", [70, 64, 64, 64], Path.write_bytes

    def full_disk(self: Path, data: bytes) -> int:
        if self.name == "c.2.0.0.0.partial":  # rows 128 to 191: of the second episode, and of the third
            raise OSError(28, "No space left on device")
        return write_bytes(self, data)

    def append_rest(writer: StoreWriter) -> None:
        for i in range(writer.episodes, 4):
            writer.append(random_episode(lengths[i], i))

    with (
        pytest.raises(OSError, match="No space left") as raised,
        StoreWriter(path, TASK, lengths, ATTRIBUTES, 3) as writer,
    ):
        writer.append(random_episode(70, 0))
        writer.flush()
        monkeypatch.setattr(Path, "write_bytes", full_disk)
        append_rest(writer)
    note = f"1 episode is kept in '{path}.partial': the same command continues, unless its source changes."
    assert raised.value.__notes__ == [note]
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, TASK, lengths, ATTRIBUTES, 3) as writer:
        writer.append(random_episode(64, 1))
        writer.append(random_episode(64, 2))
        raise KeyboardInterrupt
    monkeypatch.undo()
    writer = StoreWriter(path, TASK, lengths, ATTRIBUTES, 3)
    assert writer.episodes == 1
    append_rest(writer)
    writer.finish({})
    for key in random_episode(1, 0):
        np.testing.assert_array_equal(Store(path).read(key), expected_array(key, lengths))
    assert not list(path.rglob("*.partial"))


def test_an_error_leaves_nothing_of_a_store_that_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    write_partial_store(path)
    with pytest.raises(DataError) as raised, StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3, resumable=False) as writer:
        assert writer.episodes == 0
        writer.append(random_episode(70, 0))
        writer.flush()
        raise DataError("The robot observes nothing.")
    assert not hasattr(raised.value, "__notes__")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are written by threads: their errors must not be lost."""
    write_bytes = Path.write_bytes

    def full_disk(self: Path, data: bytes) -> int:
        if self.name == "c.3.0.0.0.partial":
            raise OSError(28, "No space left on device")
        return write_bytes(self, data)

    path = tmp_path / "s.zarr"
    with pytest.raises(OSError, match="No space left"), StoreWriter(path, TASK, [640, 5], ATTRIBUTES, 3) as writer:
        monkeypatch.setattr(Path, "write_bytes", full_disk)
        for length in (640, 5):
            writer.append(random_episode(length, 0))
    assert list(tmp_path.iterdir()) == []


def test_complete_store_that_was_not_renamed_is_not_written_again(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr", [70, 5])
    path.rename(tmp_path / "s.zarr.partial")
    writer = StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3)
    assert writer.episodes == 2
    writer.finish({})
    assert Store(path).read("action").shape == (75, 7)


def test_ctrl_c_while_an_older_store_is_replaced_leaves_a_complete_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_store(tmp_path / "s.zarr", [7])
    replace = store_writer.replace

    def interrupted(*args: Path) -> None:
        replace(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(store_writer, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, TASK, [70], ATTRIBUTES, 3) as writer:
        writer.append(random_episode(70, 0))
        writer.finish({})
    assert Store(path).episode_ends.tolist() == [70]
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_is_written_where_a_link_points_to(tmp_path: Path) -> None:
    path, target = tmp_path / "link.zarr", tmp_path / "large disk" / "target.zarr"
    path.symlink_to(target)
    for steps in (5, 7):
        writer = StoreWriter(path, TASK, [steps], ATTRIBUTES, 3, resumable=False)
        writer.append(random_episode(steps, 0))
        writer.finish({})
        assert path.is_symlink()
        assert Store(target).episode_ends.tolist() == [steps]


def test_other_attributes_start_over(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    write_partial_store(path)
    assert StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3).episodes == 1
    assert StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 2).episodes == 0
    assert StoreWriter(path, TASK, [70, 5], ATTRIBUTES | {"render": "full"}, 2).episodes == 0


def test_another_task_description_starts_over(tmp_path: Path) -> None:
    path, task = tmp_path / "s.zarr", task_from_json(DOOR)
    write_partial_store(path, task)
    assert StoreWriter(path, task, [70, 5], ATTRIBUTES, 3).episodes == 1
    other = task_from_json(DOOR | {"cameras": {"frontview_image": "sideview"}})
    assert StoreWriter(path, other, [70, 5], ATTRIBUTES, 3).episodes == 0
