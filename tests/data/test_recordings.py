"""Recordings of any robot are converted as they were recorded: the arrays of their stores, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from conftest import ddp, ok, ok_json, refused
from numcodecs import Blosc
from PIL import Image

from ddp_cli.data.hdf5_recording import open_robomimic
from ddp_cli.data.inspection import inspect_source
from ddp_cli.data.recording_conversion import convert_recording
from ddp_cli.data.recording_schema import infer_schema
from ddp_cli.data.recordings import open_recording
from ddp_cli.data.replay_buffer import ReplayBuffer
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.selection import parse_selection

LENGTHS = [5, 9, 3]
ENDS = np.cumsum(LENGTHS)


def smooth_image(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def write_replay_buffer(path: Path, zarr_format: int = 2, scale: float = 1.0, **arrays: Any) -> dict[str, np.ndarray]:
    """As the published project writes Push-T: float images, vectors, and a matrix per step."""
    rng = np.random.default_rng(0)
    n = int(ENDS[-1])
    values = {
        "img": (smooth_image(rng, n, 16, 20, 3) * np.float32(scale)).astype(np.float32),
        "state": rng.normal(size=(n, 5)).astype(np.float32),
        "keypoint": rng.normal(size=(n, 9, 2)).astype(np.float32),
        "action": rng.uniform(0, 512, (n, 2)).astype(np.float32),
    } | arrays
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    compressor: dict[str, Any] = {"compressors": Blosc("zstd")} if zarr_format == 2 else {}
    for key, value in values.items():
        root.create_array(
            f"data/{key}", shape=value.shape, dtype=value.dtype, chunks=(4, *value.shape[1:]), **compressor
        )
        root[f"data/{key}"][:] = value
    root.create_array("meta/episode_ends", data=ENDS)
    return values


def to_zip(folder: Path) -> Path:
    path = folder.with_name(folder.name + ".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for member in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(member, member.relative_to(folder))
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_a_replay_buffer_is_taken_as_it_is(tmp_path: Path, zarr_format: int, zipped: bool, scale: float) -> None:
    source = tmp_path / "pusht.zarr"
    values = write_replay_buffer(source, zarr_format, scale)
    source = to_zip(source) if zipped else source
    out = tmp_path / "s.zarr"
    result = ok_json("convert", source, "--rate", 10, "--out", out)
    assert (result["task"], result["episodes"], result["frames"]) == ("pusht", 3, 17)
    store = Store(out)
    np.testing.assert_array_equal(store.read("img"), np.round(values["img"] / scale).astype(np.uint8))
    np.testing.assert_array_equal(store.read("state"), values["state"])
    np.testing.assert_array_equal(store.read("keypoint"), values["keypoint"].reshape(-1, 18))
    np.testing.assert_array_equal(store.read("action"), values["action"])
    assert store.episode_ends.tolist() == ENDS.tolist()
    schema = store.task.schema
    assert (schema.rate, store.task.simulator, schema.cameras["img"].shape) == (10, None, (16, 20, 3))
    assert store.check["result"] == "not verified"


def test_keys_select_arrays_and_their_elements(tmp_path: Path) -> None:
    values = write_replay_buffer(tmp_path / "p.zarr")
    command = ("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s.zarr", "--task", "pusht")
    ok(ddp(*command, "--keys", "img,agent=state[0:2],angle=data/state[4]", "--only", "1:"))
    store = Store(tmp_path / "s.zarr")
    assert (store.task.name, list(store.task.low_dim), store.image_keys) == ("pusht", ["agent", "angle"], ["img"])
    np.testing.assert_array_equal(store.read("agent"), values["state"][5:, :2])
    np.testing.assert_array_equal(store.read("angle"), values["state"][5:, 4:])
    for keys, message in (
        ("img,nothing", "has no array 'nothing'. It has data/action, data/img"),
        ("state[0:2", "'state[0:2' is not an array"),
        ("state[4:9]", "'data/state[4:9]' goes beyond the 5 numbers of a step. Select some of data/state[0:5]"),
        ("state[5]", "'data/state[5:6]' goes beyond the 5 numbers"),
        ("state[2:2]", "'data/state[2:2]' has 0 numbers"),
        ("a=state[0:2],b=state[2],a=state[3]", "data/state[0:2] and data/state[3] have the same key 'a'. Give"),
        ("state[0:2],state[3]", "--keys data_state_1=data/state[0:2],data_state_2=data/state[3]."),
    ):
        assert message in " ".join(refused(ddp(*command, "--overwrite", "--keys", keys)).split())
    assert len(Store(tmp_path / "s.zarr").episode_ends) == 2  # refused before anything was replaced


def test_more_actions_than_there_are_cannot_be_selected(tmp_path: Path) -> None:
    write_replay_buffer(tmp_path / "p.zarr")
    command = ("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s.zarr", "--action-key")
    assert "'data/action[0:20]' goes beyond the 2 numbers" in refused(ddp(*command, "action[0:20]"))
    ok(ddp(*command, "action[0:2]"))


def test_what_a_recording_does_not_state_is_asked_for(tmp_path: Path) -> None:
    write_replay_buffer(tmp_path / "p.zarr")
    assert "does not state its control rate. Add --rate" in refused(ddp("convert", tmp_path / "p.zarr"))
    assert "--obs does not apply" in refused(ddp("convert", tmp_path / "p.zarr", "--rate", 10, "--obs", "state"))
    inside = refused(ddp("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "p.zarr/data/s.zarr"))
    assert "s.zarr' is inside" in inside
    named_lift = refused(ddp("convert", tmp_path / "p.zarr", "--rate", 10, "--task", "lift"))
    assert "--task lift is a built-in task with a simulator" in named_lift


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"state": np.zeros((12, 5), "f4")}, "data/state has 12 rows, but the episodes end at 17"),
        ({"state": np.full((17, 5), np.nan, "f4")}, "episode 0: state is not finite in step 0, and 2 more"),
        ({"img": np.full((17, 8, 8, 3), 300.0, "f4")}, "episode 0, img: the images are 300 to 300, expected 0 to 255"),
        ({"img": np.full((17, 8, 8, 3), -1.0, "f4")}, "episode 0, img: the images are -1 to -1, expected 0 to 1"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    write_replay_buffer(tmp_path / "p.zarr", **arrays)
    assert message in " ".join(
        refused(ddp("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s")).split()
    )
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "s.partial").exists()


@pytest.mark.parametrize("key", ["state", "action"])
def test_episodes_with_values_that_are_not_finite_can_be_left_out(tmp_path: Path, key: str) -> None:
    """They are found before anything is written."""
    values = write_replay_buffer(tmp_path / "p.zarr")
    for step, value in ((7, np.nan), (15, np.inf)):
        values[key][step, 1] = value
    write_replay_buffer(tmp_path / "p.zarr", **values)
    command = ("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s.zarr")
    error = " ".join(refused(ddp(*command)).split())
    assert f"episode 1: {key} is not finite in step 2, and 1 more episodes have faults. Leave such episodes" in error
    assert list(tmp_path.iterdir()) == [tmp_path / "p.zarr"]
    assert f"episode 1: {key} is not finite in step 2. Leave such" in " ".join(
        refused(ddp(*command, "--only", ":2")).split()
    )
    result = ok_json(*command, "--skip-bad")
    faults = {"1": f"{key} is not finite in step 2.", "2": f"{key} is not finite in step 1."}
    assert (result["episodes"], result["left_out"]) == (1, faults)
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read(key), values[key][:5])
    assert ok_json(*command, "--drop-episodes", "1,2", "--overwrite")["episodes"] == 1


@pytest.mark.parametrize("ends", [[5, 5, 17], [5.0, 17.0], [[5, 17]], [0, 17], [9, 5]])
def test_episode_ends_that_cannot_be_are_refused(tmp_path: Path, ends: list[Any]) -> None:
    write_replay_buffer(tmp_path / "p.zarr")
    zarr.open_group(tmp_path / "p.zarr", mode="r+").create_array(
        "meta/episode_ends", data=np.array(ends), overwrite=True
    )
    assert "meta/episode_ends are not increasing numbers" in refused(ddp("convert", tmp_path / "p.zarr", "--rate", 10))


def test_actions_of_another_name(tmp_path: Path) -> None:
    write_replay_buffer(tmp_path / "p.zarr")
    (tmp_path / "p.zarr/data/action").rename(tmp_path / "p.zarr/data/goal")
    plan = inspect_source(tmp_path / "p.zarr")["plan"]
    assert plan.startswith("needs more options: ")
    assert "has no array 'data/action'. It has data/goal, data/img" in plan
    command = ("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s.zarr")
    assert "--action-key name the ones to use" in refused(ddp(*command))
    ok(ddp(*command, "--action-key", "goal"))
    assert list(Store(tmp_path / "s.zarr").task.low_dim) == ["keypoint", "state"]


def test_a_damaged_chunk_and_rows_behind_the_last_episode(tmp_path: Path) -> None:
    shapes = {"img": (16, 20, 3), "state": (5,), "keypoint": (9, 2), "action": (2,)}
    write_replay_buffer(tmp_path / "p.zarr", **{k: np.zeros((20, *shape), "f4") for k, shape in shapes.items()})
    assert ReplayBuffer(tmp_path / "p.zarr").notes == ["3 rows behind the last episode are left out"]
    (tmp_path / "p.zarr/data/img/2.0.0.0").write_bytes(b"no chunk")
    error = refused(ddp("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s"))
    assert "data/img, episode 1 cannot be decoded" in " ".join(error.split())


@pytest.mark.parametrize("member", ["data/state", "meta/episode_ends"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_damaged_metadata_is_one_line(tmp_path: Path, member: str, zarr_format: int) -> None:
    write_replay_buffer(tmp_path / "p.zarr", zarr_format)
    (tmp_path / "p.zarr" / member / (".zarray" if zarr_format == 2 else "zarr.json")).write_bytes(b"{\xf6")
    for command in (("inspect",), ("convert", "--rate", 10, "--out", tmp_path / "s.zarr")):
        assert "p.zarr' is a damaged zarr folder" in refused(ddp(command[0], tmp_path / "p.zarr", *command[1:]))
    assert not (tmp_path / "s.zarr").exists()


def test_an_interrupted_conversion_is_resumed_with_the_same_scale(tmp_path: Path) -> None:
    """The first image decides whether images are of 0 to 1; the second episode is dark."""
    values = write_replay_buffer(tmp_path / "p.zarr")
    dark = values["img"].copy()
    dark[5:] = 1.0
    write_replay_buffer(tmp_path / "p.zarr", img=dark)
    recording = ReplayBuffer(tmp_path / "p.zarr")
    schema = infer_schema(recording, rate=10)

    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_recording(recording, schema, "p", None, tmp_path / "s.zarr", None, 3, interrupt)
    done: list[int] = []
    convert_recording(recording, schema, "p", None, tmp_path / "s.zarr", None, 3, lambda steps, _: done.append(steps))
    assert done == ENDS.tolist()
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("img"), dark.astype(np.uint8))


def test_a_conversion_that_failed_keeps_its_complete_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network drive may fail after hours."""
    values = write_replay_buffer(tmp_path / "p.zarr")
    recording, out = ReplayBuffer(tmp_path / "p.zarr"), tmp_path / "s.zarr"
    schema, iter_images = infer_schema(recording, rate=10), recording.iter_images

    def fail(array: str, episode: int, **options: Any) -> Any:
        if episode == failing:
            raise DataError("data/img cannot be decoded.")
        return iter_images(array, episode, **options)

    monkeypatch.setattr(recording, "iter_images", fail)
    failing = 0
    with pytest.raises(DataError):
        convert_recording(recording, schema, "p", None, out, None, 3, lambda *_: None)
    assert not out.with_name("s.zarr.partial").exists()
    failing = 2
    with pytest.raises(DataError) as raised:
        convert_recording(recording, schema, "p", None, out, None, 3, lambda *_: None)
    note = f"2 episodes are kept in '{out}.partial': the same command continues, unless its source changes."
    assert raised.value.__notes__ == [note]
    failing, done = -1, list[int]()
    convert_recording(recording, schema, "p", None, out, None, 3, lambda steps, _: done.append(steps))
    assert done == ENDS[1:].tolist()
    np.testing.assert_array_equal(Store(out).read("img"), values["img"])


def test_arrays_of_another_rate_are_not_observed(tmp_path: Path) -> None:
    write_replay_buffer(tmp_path / "p.zarr", fast=np.zeros((2 * 17, 16, 20, 3), "u1"))
    command = ("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s.zarr")
    assert "data/fast: it has 34 rows, and the episodes 17 steps; it is not observed" in ok_json(*command)["notes"]
    assert "has 'data/fast', but it has 34 rows" in refused(ddp(*command, "--overwrite", "--keys", "fast"))


def test_depths_are_no_images(tmp_path: Path) -> None:
    depth = np.tile(np.linspace(0.3, 1.8, 16 * 20, dtype="f4").reshape(16, 20, 1), (17, 1, 1, 1))
    write_replay_buffer(tmp_path / "p.zarr", depth=depth, hand=np.full((17, 2, 21, 3), 0.5, "f4"))
    command = ("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s.zarr")
    message = "depth: the values are 0.3 to 1.8 with decimals, not those of an image"
    assert message in " ".join(refused(ddp(*command)).split())
    assert not (tmp_path / "s.zarr").exists()
    ok(ddp(*command, "--keys", "img,hand"))
    assert Store(tmp_path / "s.zarr").task.schema.vectors["hand"].width == 126


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    write_replay_buffer(tmp_path / "p.zarr")
    metadata = json.loads((tmp_path / "p.zarr/meta/episode_ends/.zarray").read_text())
    filters = [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}]
    metadata |= {"dtype": "|O", "fill_value": "", "filters": filters, "compressor": None}
    (tmp_path / "p.zarr/meta/episode_ends/.zarray").write_text(json.dumps(metadata))
    (tmp_path / "p.zarr/meta/episode_ends/0").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    (tmp_path / "p.zarr/.zmetadata").unlink(missing_ok=True)
    assert "which are never loaded" in refused(ddp("convert", tmp_path / "p.zarr", "--rate", 10))
    assert not (tmp_path / "touched").exists()


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# -- ALOHA ------------------------------------------------------------------------------------------


def write_aloha(folder: Path, encoded: bool) -> list[np.ndarray]:
    """Episodes 2, 9 and 10, as ACT writes them; images by camera `top`, raw or as padded JPEGs."""
    folder.mkdir()
    images = []
    for i, (number, n) in enumerate(zip((2, 9, 10), LENGTHS, strict=True)):
        rng = np.random.default_rng(i)
        # Smooth, so that JPEG hardly changes them.
        frames = np.broadcast_to(np.linspace(0, 200, 24, dtype=np.uint8)[:, None], (n, 16, 24, 3)) + np.uint8(i)
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as f:
            f["action"] = rng.normal(size=(n, 14))
            for key in ("qpos", "qvel", "effort"):
                f[f"observations/{key}"] = rng.normal(size=(n, 14))
            if encoded:
                files = []
                for frame in frames:
                    buffer = io.BytesIO()
                    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
                    files.append(buffer.getvalue())
                longest = max(map(len, files)) + 7
                padded = [np.frombuffer(file.ljust(longest, b"\0"), np.uint8) for file in files]
                f["observations/images/top"] = np.stack(padded)
            else:
                f["observations/images/top"] = frames
        images.append(frames)
    return images


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_chunks_that_a_replay_buffer_lacks_are_named(tmp_path: Path, zarr_format: int, zipped: bool) -> None:
    """They are read as zeros, and need not be written if they are."""
    source, out = tmp_path / "r.zarr", tmp_path / "s.zarr"
    write_replay_buffer(source, zarr_format)
    prefix, suffix = ("c/", "/0/0/0") if zarr_format == 3 else ("", ".0.0.0")
    for chunk in (1, 2):
        (source / f"data/img/{prefix}{chunk}{suffix}").unlink()
    (source / f"data/action/{prefix}4{'/' if zarr_format == 3 else '.'}0").unlink()
    notes = ok_json("convert", to_zip(source) if zipped else source, "--rate", 10, "--out", out)["notes"]
    text = "if something else was recorded, copy the recording again"
    assert f"data/img: 2 chunks have no file and are read as 0.0 (episodes 0 to 1): {text}" in notes
    assert f"data/action: 1 chunk has no file and is read as 0.0 (episode 2): {text}" in notes
    assert not Store(out).read("img")[4:12].any()


@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.uint8])
def test_masks_of_booleans_become_black_and_white_images(tmp_path: Path, dtype: type) -> None:
    mask = np.random.default_rng(0).random((17, 16, 20, 1)) > 0.5
    mask[:5] = False  # nothing to see in the first episode
    write_replay_buffer(tmp_path / "r.zarr", img=mask.astype(dtype))
    ok(ddp("inspect", tmp_path / "r.zarr"))
    notes = ok_json("convert", tmp_path / "r.zarr", "--rate", 10, "--out", tmp_path / "s.zarr")["notes"]
    white = np.uint8(255 if dtype is np.bool_ else 1)
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("img"), mask * white)
    assert any("img: its images hold only 0 and 1 of 255" in note for note in notes) == (white == 1)


@pytest.mark.parametrize("encoded", [False, True])
def test_aloha_episodes_in_the_order_of_their_numbers(tmp_path: Path, encoded: bool) -> None:
    images = write_aloha(tmp_path / "insertion", encoded)
    text = ok(ddp("convert", tmp_path / "insertion", "--out", tmp_path / "s.zarr")).output
    assert "the files do not state the control rate: 50 Hz, as ACT records, without --rate" in " ".join(text.split())
    store = Store(tmp_path / "s.zarr")
    assert (list(store.task.low_dim), store.image_keys, store.task.schema.rate) == (["qpos"], ["top"], 50)
    assert store.attrs["source"]["demos"] == ["episode_2", "episode_9", "episode_10"]
    difference = store.read("top").astype(int) - np.concatenate(images)
    assert np.abs(difference).max() <= (4 if encoded else 0)
    with h5py.File(tmp_path / "insertion/episode_9.hdf5") as f:
        np.testing.assert_array_equal(store.read("action", rows=slice(5, 14)), f["action"][:].astype("f4"))
        np.testing.assert_array_equal(store.read("qpos", rows=slice(5, 14)), f["observations/qpos"][:].astype("f4"))


def test_an_aloha_episode_that_cannot_be_read_can_be_left_out(tmp_path: Path) -> None:
    write_aloha(tmp_path / "a", encoded=False)
    with h5py.File(tmp_path / "a/episode_9.hdf5", "r+") as f:
        del f["observations/qpos"]
        f["observations"].create_dataset("qpos", (LENGTHS[1], 14), "f8")
    fault = "episode_9.hdf5': /observations/qpos was never written"
    assert fault in refused(ddp("convert", tmp_path / "a", "--out", tmp_path / "s.zarr"))
    result = ok_json("convert", tmp_path / "a", "--out", tmp_path / "s.zarr", "--skip-bad")
    assert (result["episodes"], list(result["left_out"])) == (2, ["episode_9"])
    assert fault in result["left_out"]["episode_9"]


def test_aloha_episodes_of_another_kind_are_named(tmp_path: Path) -> None:
    write_aloha(tmp_path / "a", encoded=False)
    with h5py.File(tmp_path / "a/episode_10.hdf5", "r+") as f:
        del f["observations/images/top"]
    message = "episode_10: observations/images/top differs from that of episode_2: it is missing"
    command = ("convert", tmp_path / "a", "--out", tmp_path / "s.zarr")
    assert message in " ".join(refused(ddp(*command)).split())
    assert list(ok_json(*command, "--skip-bad")["left_out"]) == ["episode_10"]
    assert ok_json(*command, "--keys", "qpos", "--overwrite")["episodes"] == 3  # the array is not needed


def test_aborted_aloha_episodes_can_be_left_out(tmp_path: Path) -> None:
    write_aloha(tmp_path / "a", encoded=False)
    file = tmp_path / "a/episode_2.hdf5"
    file.write_bytes(file.read_bytes()[:1000])
    with h5py.File(tmp_path / "a/episode_10.hdf5", "r+") as f:
        del f["action"]
        f["action"] = np.zeros((0, 14))
    command = ("convert", tmp_path / "a", "--out", tmp_path / "s.zarr")
    assert "damaged or truncated HDF5 file" in refused(ddp(*command))
    left_out = ok_json(*command, "--skip-bad")["left_out"]
    assert list(left_out) == ["episode_2", "episode_10"]
    assert "has no steps" in left_out["episode_10"]
    assert ok_json(*command, "--drop-episodes", "episode_2,episode_10", "--overwrite")["episodes"] == 1
    contents = ok_json("inspect", tmp_path / "a")
    assert contents["lengths"] == [9, 9, 9]
    kinds = {finding["kind"] for finding in contents["lint"]}
    assert "unreadable" in kinds
    assert "length" not in kinds
    (tmp_path / "a/episode_9.hdf5").write_bytes(b"")
    assert "damaged or truncated HDF5 file" in refused(ddp(*command, "--skip-bad", "--overwrite"))


def test_red_and_blue_are_exchanged_on_request(tmp_path: Path) -> None:
    """JPEGs that OpenCV encoded from RGB images have them exchanged."""
    write_aloha(tmp_path / "a", encoded=True)
    notes = " ".join(ok_json("convert", tmp_path / "a", "--out", tmp_path / "s.zarr")["notes"])
    assert "exchange red and blue" in notes
    red = np.broadcast_to(np.array([220, 100, 20], np.uint8), (5, 16, 24, 3))
    write_replay_buffer(tmp_path / "r.zarr", img=np.concatenate([red] * 4)[:17])
    command = ("convert", tmp_path / "r.zarr", "--rate", 10, "--out", tmp_path / "r")
    ok(ddp(*command, "--bgr"))
    assert Store(tmp_path / "r").read("img")[0, 0, 0].tolist() == [20, 100, 220]
    assert Store(tmp_path / "r").attrs["source"]["bgr"] is True
    ok(ddp(*command, "--overwrite"))
    assert Store(tmp_path / "r").read("img")[0, 0, 0].tolist() == [220, 100, 20]


def test_an_aloha_camera_of_another_rate_is_not_observed(tmp_path: Path) -> None:
    write_aloha(tmp_path / "a", encoded=False)
    for file in (tmp_path / "a").iterdir():
        with h5py.File(file, "r+") as f:
            f["base_action"] = np.zeros((len(f["action"]), 2))
            f["observations/images/fast"] = np.zeros((2 * len(f["action"]), 16, 24, 3), np.uint8)
        file.rename(file.with_suffix(".h5"))
    notes = ok_json("convert", tmp_path / "a", "--out", tmp_path / "s.zarr")["notes"]
    assert "observations/images/fast: it has 10 rows for 5 steps; it is not observed" in notes
    assert "base_action is not converted: the actions are those of one array, action" in notes
    assert Store(tmp_path / "s.zarr").image_keys == ["top"]


def test_a_single_aloha_episode_names_its_folder(tmp_path: Path) -> None:
    write_aloha(tmp_path / "a", encoded=False)
    for options in ((), ("--action-key", "action")):
        message = refused(ddp("convert", tmp_path / "a/episode_2.hdf5", *options))
        assert "is a single episode, as ALOHA records them" in " ".join(message.split())
        assert f"ddp convert {tmp_path / 'a'}`" in message


# -- robomimic --------------------------------------------------------------------------------------


@pytest.fixture
def stacking(tmp_path: Path) -> Path:
    """Demonstrations of another simulator, as Isaac Lab writes them: longer than num_samples, channels first."""
    with h5py.File(tmp_path / "stack.hdf5", "w") as f:
        data = f.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Isaac-Stack-v0", "type": 2, "env_kwargs": {"control_freq": 25}}
        )
        for i, n in enumerate(LENGTHS):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = n
            rng = np.random.default_rng(i)
            demo["actions"], demo["obs/eef_pos"] = rng.normal(size=(n + 2, 16)), rng.normal(size=(n + 2, 3))
            demo["obs/front"] = smooth_image(rng, n + 2, 3, 12, 10)
            demo["states"] = rng.normal(size=(n + 2, 40))
    return tmp_path / "stack.hdf5"


def test_demonstrations_of_another_simulator(stacking: Path, tmp_path: Path) -> None:
    result = ok_json("convert", stacking, "--out", tmp_path / "s.zarr")
    assert (result["task"], result["frames"]) == ("stack", 17)
    store = Store(tmp_path / "s.zarr")
    assert store.task.schema.rate == 25
    with h5py.File(stacking) as f:
        np.testing.assert_array_equal(store.read("action")[:5], f["data/demo_0/actions"][:5].astype("f4"))
        images = f["data/demo_1/obs/front"][:9].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(store.read("front", rows=slice(5, 14)), images)
    contents = inspect_source(stacking)
    assert (contents["rate"], list(contents["schema"]["cameras"])) == (25, ["front"])


def test_arrays_that_nothing_uses_may_differ(stacking: Path, tmp_path: Path) -> None:
    with h5py.File(stacking, "r+") as f:
        eef_pos = f["data/demo_1/obs/eef_pos"][:].astype("f4")
        del f["data/demo_1/obs/eef_pos"]
        f["data/demo_1/obs/eef_pos"] = eef_pos
        f["data/demo_0/obs/subgoal"], f["data/demo_1/obs/subgoal"] = [[b"abc"] * 7, [b"abcdefg"] * 11]
        f["data/demo_0/annotation"] = np.zeros(7)
    assert ok_json("convert", stacking, "--out", tmp_path / "s.zarr")["episodes"] == 3
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("eef_pos")[5:14], eef_pos[:9])
    with h5py.File(stacking, "r+") as f:
        del f["data/demo_2/obs/eef_pos"]
        f["data/demo_2/obs/eef_pos"] = np.zeros((5, 4))
    message = "demo_2: obs/eef_pos differs from that of demo_0: it has shape (4,) instead of (3,)"
    assert message in " ".join(refused(ddp("convert", stacking, "--out", tmp_path / "t.zarr")).split())


def test_episodes_are_compared_with_those_of_the_most_common_kind(stacking: Path, tmp_path: Path) -> None:
    with h5py.File(stacking, "r+") as f:
        front = f["data/demo_0/obs/front"][:]
        del f["data/demo_0/obs/front"]
    command = ("convert", stacking, "--out", tmp_path / "s.zarr")
    message = "demo_0: obs/front differs from that of demo_1: it is missing"
    assert message in " ".join(refused(ddp(*command)).split())
    assert list(ok_json(*command, "--skip-bad")["left_out"]) == ["demo_0"]
    assert ok_json(*command, "--drop-episodes", "demo_0", "--overwrite")["episodes"] == 2
    with h5py.File(stacking, "r+") as f:
        f["data/demo_0/obs/front"] = front
        del f["data/demo_1/obs/front"], f["data/demo_2/obs/front"]
    result = ok_json(*command, "--overwrite")
    assert "obs/front: demo_1 does not have it; it is not observed" in result["notes"]
    assert (result["episodes"], "cameras" in result["schema"]) == (3, False)


def test_demonstrations_without_steps_can_be_left_out(stacking: Path, tmp_path: Path) -> None:
    with h5py.File(stacking, "r+") as f:
        f["data/version"] = 3
        f["data/demo_3/actions"] = np.zeros((0, 16))
        f.create_group("data/demo_4")
    command = ("convert", stacking, "--out", tmp_path / "s.zarr")
    assert "demo_3: has no steps, and 1 more episodes have faults" in " ".join(refused(ddp(*command)).split())
    assert list(ok_json(*command, "--skip-bad")["left_out"]) == ["demo_3", "demo_4"]


def test_rows_behind_the_last_step_need_not_be_written(stacking: Path, tmp_path: Path) -> None:
    """As recorders write that allocate an array for the longest episode."""
    with h5py.File(stacking, "r+") as f:
        for demo in f["data"].values():
            n = int(demo.attrs["num_samples"])
            for name in ("actions", "obs/eef_pos", "obs/front", "states"):
                values = demo[name][:n]
                del demo[name]
                array = demo.create_dataset(
                    name, (1000, *values.shape[1:]), values.dtype, chunks=(4, *values.shape[1:])
                )
                array[:n] = values
    command = ("convert", stacking, "--out", tmp_path / "s.zarr")
    assert ok_json(*command)["frames"] == 17
    with h5py.File(stacking, "r+") as f:
        f["data/demo_1"].attrs["num_samples"] = 17  # two more chunks
    assert "2 of 5 chunks of data/demo_1/" in " ".join(refused(ddp(*command, "--overwrite")).split())


def test_raw_data_outside_of_the_folder_is_not_copied(stacking: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(1000))
    (tmp_path / "shared").mkdir()
    stacking = stacking.rename(tmp_path / "shared" / stacking.name)
    with h5py.File(stacking, "r+") as f:
        for i, n in enumerate(LENGTHS):
            external = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
            f.create_dataset(f"data/demo_{i}/obs/leak", (n + 2, 4), "u1", external=external)
    command = ("convert", stacking, "--out", tmp_path / "s.zarr")
    assert f"is stored in '{tmp_path / 'secret'}', outside of the folder" in refused(ddp(*command))
    ok(ddp(*command, "--keys", "eef_pos,front"))


def test_demonstrations_are_in_the_order_of_their_numbers(stacking: Path) -> None:
    """Names may hold digits that are no numbers."""
    with h5py.File(stacking, "r+") as f:
        for name in ("demo_10", "demo_²", "²"):
            f.copy("data/demo_0", f["data"], name)
    assert open_robomimic(stacking).episode_names == ["demo_0", "demo_1", "demo_2", "demo_10", "demo_²", "²"]


@pytest.mark.parametrize(
    ("arrays", "keys"),
    [
        (["left/pos", "right/pos", "gripper/width"], ["left_pos", "right_pos", "width"]),
        (["pos", "right/pos"], ["obs_pos", "right_pos"]),
        (["a/left/pos", "b/left/pos", "right/pos"], ["a_left_pos", "b_left_pos", "right_pos"]),
        (["joint_pos", "joint/pos", "hand/pos"], ["joint_pos", "obs_joint_pos", "hand_pos"]),
        (["left/action", "right/action"], ["left_action", "right_action"]),
    ],
)
def test_arrays_of_the_same_name_are_called_by_more_of_their_path(
    stacking: Path, arrays: list[str], keys: list[str]
) -> None:
    with h5py.File(stacking, "r+") as f:
        for i in range(3):
            for width, name in enumerate(arrays, 1):
                f[f"data/demo_{i}/obs/{name}"] = np.zeros((LENGTHS[i] + 2, width))
    schema = infer_schema(open_robomimic(stacking))
    named = {f"obs/{name}": (key, width) for width, (name, key) in enumerate(zip(arrays, keys, strict=True), 1)}
    named |= {"obs/eef_pos": ("eef_pos", 3)}
    assert {vector.source: (key, vector.width) for key, vector in schema.vectors.items()} == named
    assert list(schema.cameras) == ["front"]
    stated = f"pos=obs/eef_pos,{','.join(f'obs/{name}' for name in arrays)}"  # one key is taken
    chosen = infer_schema(open_robomimic(stacking), stated).vectors
    assert (chosen["pos"].source, len(chosen)) == ("obs/eef_pos", 1 + len(arrays))


def test_arrays_that_no_path_tells_apart_need_keys(stacking: Path) -> None:
    with h5py.File(stacking, "r+") as f:
        for i in range(3):
            for name in ("hand pos", "hand.pos"):
                f[f"data/demo_{i}/obs/{name}"] = np.zeros((LENGTHS[i] + 2, 2))
            f[f"data/demo_{i}/obs/arm/pos"] = np.zeros((LENGTHS[i] + 2, 2))
    schema = inspect_source(stacking)["schema"]
    assert list(schema["vectors"]) == ["arm_pos", "eef_pos", "hand_pos", "obs_hand_pos"]
    with h5py.File(stacking, "r+") as f:
        for i in range(3):
            f[f"data/demo_{i}/obs/hand/pos"] = np.zeros((LENGTHS[i] + 2, 2))
    plan = inspect_source(stacking)["plan"]
    assert "needs more options: " in plan
    assert "obs/hand/pos and obs/hand.pos have the same key 'obs_hand_pos'. Give each its own: --keys" in plan


def test_a_recording_is_not_said_to_have_another_rate(stacking: Path, tmp_path: Path) -> None:
    assert "was recorded at 25 Hz, 30 Hz is more" in refused(ddp("convert", stacking, "--rate", 30))
    write_aloha(tmp_path / "a", encoded=False)
    ok(ddp("convert", tmp_path / "a", "--rate", 30, "--out", tmp_path / "s.zarr"))
    assert Store(tmp_path / "s.zarr").task.schema.rate == 30


def test_demonstrations_of_a_known_simulator_are_taken_as_recorded_only_if_asked(lift_demos: Path) -> None:
    assert open_recording(lift_demos, as_recorded=False) is None


# -- schemas ----------------------------------------------------------------------------------------


def test_a_schema_that_inspect_prints_can_be_edited_and_given_back(stacking: Path, tmp_path: Path) -> None:
    schema = ok_json("inspect", stacking)["schema"]
    schema["rate"] = 20
    schema["vectors"] = {"tool": {"width": 2, "source": "obs/eef_pos[1:3]", "unit": "m"}}
    schema["action"] = [
        {"name": "left", "width": 7, "representation": "delta", "low": [-1] * 7, "high": [1] * 7},
        {"name": "right", "width": 9},
    ]
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    ok(ddp("convert", stacking, "--schema", file, "--out", tmp_path / "s.zarr"))
    stored = Store(tmp_path / "s.zarr").task.schema
    assert (stored.rate, stored.vectors["tool"].unit) == (20, "m")
    assert [part.name for part in stored.action] == ["left", "right"]
    task_file = tmp_path / "task.json"
    for stated in ({}, {"horizon": 1000}):
        task_file.write_text(json.dumps({"name": "stacking", "schema": schema} | stated))
        ok(ddp("convert", stacking, "--task", task_file, "--out", tmp_path / "u.zarr", "--overwrite"))
        task = Store(tmp_path / "u.zarr").task
        horizon = stated.get("horizon", Store(tmp_path / "s.zarr").task.horizon)
        assert (task.name, task.schema, task.horizon) == ("stacking", stored, horizon)
    for option, value in (("--schema", file), ("--rate", 5)):
        assert f"--task {task_file}" in refused(ddp("convert", stacking, "--task", task_file, option, value))
    for change, message in (
        ({"action": [{"name": "a", "width": 3}]}, "the action has width 3, but actions has 16"),
        (
            {"cameras": {"front": {"height": 5, "width": 10, "recorded": [9, 9]}}},
            "front has shape (9, 9, 3), but obs/front holds (12, 10, 3)",
        ),
        ({"vectors": {"x": {"width": 3, "source": "obs/y"}}}, "has no array 'obs/y'"),
        ({"rate": None}, "rate"),
    ):
        file.write_text(json.dumps(schema | change))
        error = refused(ddp("convert", stacking, "--schema", file, "--out", tmp_path / "t.zarr"))
        assert message in " ".join(error.split())
    assert "--schema says what --keys" in refused(ddp("convert", stacking, "--schema", file, "--rate", 5))


def test_selections_of_elements() -> None:
    assert parse_selection("a/b") == ("a/b", slice(None))
    assert parse_selection("a.b[3]") == ("a.b", slice(3, 4))
    assert parse_selection("a[2:9]") == ("a", slice(2, 9))


def test_a_store_of_a_recording_is_copied(tmp_path: Path) -> None:
    values = write_replay_buffer(tmp_path / "p.zarr")
    ok(ddp("convert", tmp_path / "p.zarr", "--rate", 10, "--out", tmp_path / "s.zarr"))
    ok(ddp("convert", tmp_path / "s.zarr", "--only", "1:", "--out", tmp_path / "t.zarr"))
    copy = Store(tmp_path / "t.zarr")
    np.testing.assert_array_equal(copy.read("action"), values["action"][5:])
    assert (copy.task, copy.attrs["action"]) == (Store(tmp_path / "s.zarr").task, {"convention": "recorded", "dim": 2})
    error = refused(ddp("convert", tmp_path / "s.zarr", "--actions", "delta", "--out", tmp_path / "u.zarr"))
    assert "holds actions as they were recorded: their meaning is not known" in " ".join(error.split())


def test_stores_of_ddp_are_no_replay_buffers(lift_zarr: Path, tmp_path: Path) -> None:
    assert open_recording(lift_zarr, as_recorded=False) is None
    shutil.copytree(lift_zarr, tmp_path / "s.zarr")
    assert "--rate does not apply" in refused(
        ddp("convert", tmp_path / "s.zarr", "--rate", 10, "--out", tmp_path / "t")
    )


WRITE_ENCODED_IMAGES = """
import sys, numpy, zarr
from imagecodecs import numcodecs
numcodecs.register_codecs(verbose=False)
images = numpy.load(sys.argv[2])
options = {"Jpeg2k": {"reversible": True}, "Jpegxl": {"lossless": True}}[sys.argv[3]]
zarr.open_group(sys.argv[1])["data"].create_array(
    "camera0_rgb", shape=images.shape, dtype="u1", chunks=(1, *images.shape[1:]),
    compressors=getattr(numcodecs, sys.argv[3])(**options),
)[:] = images
"""


@pytest.mark.parametrize("name", ["Jpeg2k", "Jpegxl"])
def test_images_compressed_by_other_codecs_are_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk per image, as the published project and UMI store them; lossless here."""
    path, n = tmp_path / "p.zarr", int(ENDS[-1])
    write_replay_buffer(path)
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 40, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    # In other processes: here the codecs are not registered.
    command = [sys.executable, "-c", WRITE_ENCODED_IMAGES, path, tmp_path / "images.npy", name]
    subprocess.run(command, check=True, capture_output=True)
    command = [sys.executable, "-m", "ddp_cli", "convert", path, "--rate", "10", "--out", tmp_path / "s.zarr"]
    subprocess.run(command, check=True, capture_output=True)
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("camera0_rgb"), images)

    monkeypatch.setitem(sys.modules, "imagecodecs.numcodecs", None)
    text = refused(ddp("convert", path, "--rate", 10, "--out", tmp_path / "t.zarr"))
    assert f"codec not available: ''imagecodecs_{name.lower()}''" in text
    assert "pip install 'ddp-cli[jpeg2k]'" in text
