"""A store with missing or damaged pieces is refused; what is missing and the episodes it belongs to are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import ddp, refused
from data.random_stores import (
    ATTRIBUTES,
    TASK,
    expected_array,
    forget_checksums,
    random_episode,
    write_partial_store,
    write_store,
)

from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import DataError

LENGTHS = [70, 5, 130]  # chunks of 64 images: 0 to 63, 64 to 127, 128 to 191, 192 to 204


def chunk_file(store: Path, key: str, index: int) -> Path:
    """The file of a chunk of the array `key`, in any layout."""
    zeros = 1 if key in ("action", "object") else 3
    names = [sep.join([*prefix, str(index), *"0" * zeros]) for prefix in ((), ("c",)) for sep in "./"]
    return next(path for name in names if (path := store / "data" / key / name).is_file())


def rewrite_in_early_layout(path: Path, out: Path, zarr_format: int) -> Path:
    """The store as early versions wrote it: by zarr itself, with a folder for each dimension of a chunk's index."""
    source, target = zarr.open_group(path, mode="r"), zarr.create_group(out, zarr_format=zarr_format)
    for group in ("data", "meta"):
        for key, array in source[group].arrays():
            encoding = {"name": "default" if zarr_format == 3 else "v2", "separator": "/"}
            copy = target.create_array(
                f"{group}/{key}", shape=array.shape, dtype=array.dtype, chunks=array.chunks, chunk_key_encoding=encoding
            )
            copy[:] = array[:]
    target.attrs.update({key: value for key, value in source.attrs.asdict().items() if key != "content"})
    return out


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    ("key", "index", "episodes"),
    [
        ("agentview_image", 0, "episode 0"),
        ("robot0_eye_in_hand_image", 1, "episodes 0 to 2"),
        ("agentview_image", 3, "episode 2"),
        ("action", 0, "episodes 0 to 2"),
    ],
)
def test_a_missing_chunk_is_named(
    tmp_path: Path, zarr_format: int, early: bool, key: str, index: int, episodes: str
) -> None:
    path = write_store(tmp_path / "s.zarr", LENGTHS, zarr_format)
    if early:
        path = rewrite_in_early_layout(path, tmp_path / "early.zarr", zarr_format)
    np.testing.assert_array_equal(Store(path).read(key), expected_array(key, LENGTHS))
    file = chunk_file(path, key, index)
    file.unlink()
    with pytest.raises(DataError) as error:
        Store(path)
    assert error.value.message == f"'{path}': the chunk file {file.relative_to(path)} is missing ({episodes})."


def test_several_missing_chunks_are_counted(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr", LENGTHS)
    for index in (1, 3):
        chunk_file(path, "agentview_image", index).unlink()
    with pytest.raises(DataError, match=r"agentview_image/c.1.0.0.0 and 1 more are missing \(episodes 0 to 2\)"):
        Store(path)


def test_a_missing_array_or_episode_ends_are_named(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr", LENGTHS)
    shutil.copytree(path, tmp_path / "t.zarr")
    shutil.rmtree(path / "data/agentview_image")
    with pytest.raises(DataError, match="no array data/agentview_image"):
        Store(path)
    (tmp_path / "t.zarr/meta/episode_ends/c.0").unlink()
    with pytest.raises(DataError, match="the chunk file meta/episode_ends/c.0 is missing"):
        Store(tmp_path / "t.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_flipped_bit_is_never_read_as_data(tmp_path: Path, zarr_format: int) -> None:
    path = write_store(tmp_path / "s.zarr", LENGTHS, zarr_format)
    expected = expected_array("action", LENGTHS)
    file = chunk_file(path, "action", 0)
    content, n_refused = file.read_bytes(), 0
    for position in [*range(16), *range(16, len(content), len(content) // 40), len(content) - 1]:
        damaged = bytearray(content)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(Store(path).read("action"), expected)
        except DataError as e:
            assert "data/action" in e.message  # noqa: PT017
            assert file.name in e.message  # noqa: PT017
            assert "episodes 0 to 2" in e.message  # noqa: PT017
            n_refused += 1
    assert n_refused > 40


@pytest.mark.parametrize("damage", ["empty", "truncated", "zeros", "another chunk"])
def test_a_damaged_chunk_is_named(tmp_path: Path, damage: str) -> None:
    path = write_store(tmp_path / "s.zarr", [*LENGTHS, 300])
    file = chunk_file(path, "agentview_image", 3)
    size = file.stat().st_size
    contents = {"empty": b"", "truncated": file.read_bytes()[: size // 2], "zeros": bytes(size)}
    file.write_bytes(contents.get(damage) or (chunk_file(path, "action", 0).read_bytes() if damage != "empty" else b""))
    with pytest.raises(DataError) as error:
        Store(path)
    fault = "data/agentview_image/c.3.0.0.0 is damaged, or not the one that was written (episodes 2 to 3)."
    assert error.value.message == f"'{path}': the chunk file {fault}"
    forget_checksums(path)  # as in stores of earlier versions
    store = Store(path)
    np.testing.assert_array_equal(
        store.read("agentview_image", rows=slice(0, 70)), random_episode(70, 0)["agentview_image"]
    )
    with pytest.raises(DataError) as error:
        store.read("agentview_image")
    fault = "data/agentview_image is damaged: chunk file c.3.0.0.0, episodes 2 to 3."
    assert error.value.message == f"'{path}': {fault}"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_exchanged_chunk_files_are_found(tmp_path: Path, zarr_format: int) -> None:
    """Each is valid by itself."""
    path = write_store(tmp_path / "s.zarr", [*LENGTHS, 300], zarr_format)
    files = [chunk_file(path, "agentview_image", i) for i in (1, 2)]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)
    with pytest.raises(DataError, match=rf"agentview_image/{files[0].name} is damaged, or not .* \(episodes 0 to 2\)"):
        Store(path)
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    np.testing.assert_array_equal(Store(path).read("action"), expected_array("action", [*LENGTHS, 300]))


def test_other_episode_ends_of_the_same_count_are_found(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr", LENGTHS)
    write_store(tmp_path / "other.zarr", [60, 15, 130])
    shutil.copy(tmp_path / "other.zarr/meta/episode_ends/c.0", path / "meta/episode_ends/c.0")
    with pytest.raises(DataError, match=r"the chunk file meta/episode_ends/c\.0 is damaged, or not the one"):
        Store(path)


def test_chunks_hold_a_checksum_that_the_metadata_does_not_mention(tmp_path: Path) -> None:
    """Stores are read by other tools, and by versions that knew no checksums."""
    path = write_store(tmp_path / "s.zarr", LENGTHS)
    for file in (chunk_file(path, "action", 0), chunk_file(path, "agentview_image", 3), path / "meta/episode_ends/c.0"):
        assert file.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"  # a zstd frame
        assert file.read_bytes()[4] & 0b100  # with a checksum
        metadata = json.loads((file.parent / "zarr.json").read_text())
        assert metadata["codecs"][-1] == {"name": "zstd", "configuration": {"level": 3, "checksum": False}}


def change_array(path: Path, name: str, values: np.ndarray) -> None:
    zarr.open_group(path, mode="r+").create_array(name, data=values, overwrite=True)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("data/action", np.ones((204, 7), "f4"), r"data/action has shape \(204, 7\) .*expected \(205, 7\)"),
        ("data/action", np.ones((205, 10), "f4"), r"data/action has shape \(205, 10\) .*expected \(205, 7\)"),
        ("data/object", np.ones((205, 10), "f8"), "data/object has .*float64, expected .*float32"),
        ("data/agentview_image", np.ones((205, 3, 84, 84), "u1"), r"shape \(205, 3, 84, 84\)"),
        ("meta/episode_ends", np.array([70, 70, 205]), r"episode_ends\[1\] is 70, expected 71 or more"),
        ("meta/episode_ends", np.array([75, 70, 205]), r"episode_ends\[1\] is 70, expected 76 or more"),
        ("meta/episode_ends", np.array([0, 75, 205]), r"episode_ends\[0\] is 0, expected 1 or more"),
        ("meta/episode_ends", np.array([70, 75, 200]), "has 200 steps, the attribute 'total' says 205"),
        ("meta/episode_ends", np.array([75, 205]), "has 2 episodes, the attribute 'episodes' says 3"),
        ("meta/episode_ends", np.array([70.0, 75.0, 205.0]), "type float64"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(
    tmp_path: Path, name: str, values: np.ndarray, message: str
) -> None:
    path = write_store(tmp_path / "s.zarr", LENGTHS)
    change_array(path, name, values)
    with pytest.raises(DataError, match=message):
        Store(path)


@pytest.mark.parametrize("content", ["", "[]", "5", '{"zarr_format": 3}', '{"zarr_format": 3, "node_type": "array"}'])
@pytest.mark.parametrize("name", ["zarr.json", "data/action/zarr.json", "meta/episode_ends/zarr.json"])
def test_damaged_metadata_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = write_store(tmp_path / "s.zarr", [3])
    (path / name).write_text(content)
    with pytest.raises(DataError, match=r"s\.zarr' (is not|is a zarr folder, but not|has no)|metadata of"):
        Store(path)


def test_a_partial_store_that_lost_a_chunk_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    write_partial_store(path)
    (tmp_path / "s.zarr.partial/data/agentview_image/c.0.0.0.0").unlink()
    writer = StoreWriter(path, TASK, [70, 5], ATTRIBUTES, 3)
    assert writer.episodes == 0


def test_a_store_that_lost_a_chunk_while_it_was_written_is_not_complete(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    writer = StoreWriter(path, TASK, [70], ATTRIBUTES, 3)
    writer.append(random_episode(70, 0))
    (tmp_path / "s.zarr.partial/data/agentview_image/c.0.0.0.0").unlink()
    with pytest.raises(DataError, match="agentview_image/c.0.0.0.0 was removed while the store was written"):
        writer.finish({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--task", "lift", "--steps", "1", "--data"],
        ["preview"],
        ["inspect"],
        ["convert", "--out", "copy.zarr"],
    ],
)
def test_commands_refuse_a_store_with_a_missing_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_store(tmp_path / "s.zarr", LENGTHS)
    chunk_file(path, "agentview_image", 1).unlink()
    line = refused(ddp(*command, path))
    assert "the chunk file data/agentview_image/c.1.0.0.0 is missing (episodes 0 to 2). Convert the demonstr" in line
    assert list(tmp_path.iterdir()) == [path]
