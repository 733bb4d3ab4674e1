"""Stores of one task are merged: all episodes in order, with a check only as good as that of every part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ddp, ok, ok_json, refused
from data.test_recordings import write_replay_buffer

from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_replay_buffer(tmp_path / "r.zarr")
    command = ("convert", tmp_path / "r.zarr", "--rate", 10, "--task", "pusht")
    ok(ddp(*command, "--only", ":1", "--out", tmp_path / "a.zarr"))
    ok(ddp(*command, "--only", "1:", "--out", tmp_path / "b.zarr"))
    return [tmp_path / "a.zarr", tmp_path / "b.zarr"]


def test_all_episodes_are_in_the_merged_store(parts: list[Path], tmp_path: Path) -> None:
    a, b = map(Store, parts)
    output = ok(ddp("convert", parts[1], parts[0], "--out", tmp_path / "c.zarr")).output
    assert "3 episodes, 17 steps, from 2 stores" in " ".join(output.split())
    merged = Store(tmp_path / "c.zarr")
    for key in ("img", "state", "keypoint", "action"):
        np.testing.assert_array_equal(merged.read(key), np.concatenate([b.read(key), a.read(key)]))
    assert merged.episode_ends.tolist() == [9, 12, 17]
    assert merged.attrs["source"]["demos"] == ["b/1", "b/2", "a/0"]
    assert merged.task == a.task
    assert merged.check["result"] == "not verified"


def test_a_merge_is_resumed_only_with_the_same_observations(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, out = StoreWriter.append, tmp_path / "c.zarr"

    def interrupted(self: StoreWriter, *arguments: Any) -> None:
        append(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "append", interrupted)
        assert ddp("convert", *parts, "--out", out).exit_code == 130
    values = write_replay_buffer(tmp_path / "r.zarr", state=np.ones((17, 5), "f4"))
    for options, part in ((":1", parts[0]), ("1:", parts[1])):
        command = ("convert", tmp_path / "r.zarr", "--rate", 10, "--task", "pusht", "--only", options)
        ok(ddp(*command, "--out", part, "--overwrite"))
    ok(ddp("convert", *parts, "--out", out))
    np.testing.assert_array_equal(Store(out).read("state"), values["state"])


def test_episodes_with_the_same_actions_in_other_states_are_merged(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        state = np.random.default_rng(seed).normal(size=(17, 5)).astype("f4")
        write_replay_buffer(tmp_path / f"{name}.zarr.in", state=state, action=np.ones((17, 2), "f4"))
        command = ("convert", tmp_path / f"{name}.zarr.in", "--rate", 10, "--task", "pusht")
        ok(ddp(*command, "--out", tmp_path / f"{name}.zarr"))
    ok(ddp("convert", tmp_path / "a.zarr", tmp_path / "b.zarr", "--out", tmp_path / "c.zarr"))


def test_stores_of_other_robots_become_no_datasets(parts: list[Path], tmp_path: Path) -> None:
    for to in ("lerobot", "robomimic"):
        error = refused(ddp("convert", parts[0], "--to", to, "--out", tmp_path / "out"))
        assert f"--to {to} needs a task of robosuite" in error
        assert not (tmp_path / "out").exists()


def test_a_check_holds_if_all_stores_passed(lift_zarr: Path, tmp_path: Path) -> None:
    for name, only in (("a", ":1"), ("b", "1:")):
        ok(ddp("convert", lift_zarr, "--only", only, "--out", tmp_path / f"{name}.zarr"))
    text = ok(ddp("convert", tmp_path / "a.zarr", tmp_path / "b.zarr", "--out", tmp_path / "c.zarr")).output
    assert "check passed in the store that it was copied from" in " ".join(text.split())
    check = Store(tmp_path / "c.zarr").check
    assert check["result"] == "passed"
    assert check["checked_demos"] == ["a/demo_0", "b/demo_1"]
    np.testing.assert_array_equal(Store(tmp_path / "c.zarr").read("action"), Store(lift_zarr).read("action"))

    metadata = json.loads((tmp_path / "b.zarr/zarr.json").read_text())
    metadata["attributes"]["check"] |= {"result": "failed", "why": "the actions are wrong"}
    (tmp_path / "b.zarr/zarr.json").write_text(json.dumps(metadata))
    error = refused(ddp("convert", tmp_path / "a.zarr", tmp_path / "b.zarr", "--out", tmp_path / "d.zarr"))
    assert "b.zarr' failed its check: the actions are wrong" in error
    assert not (tmp_path / "d.zarr").exists()


def test_episodes_of_stores_of_the_same_name_can_be_told_apart(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    shutil.move(parts[1], tmp_path / "x/a.zarr")
    for name, text in (("a.zarr", "push it"), ("x/a.zarr", "pull it")):
        metadata = json.loads((tmp_path / name / "zarr.json").read_text())
        metadata["attributes"]["source"]["instructions"] = [text]
        (tmp_path / name / "zarr.json").write_text(json.dumps(metadata))
    notes = ok_json("convert", parts[0], tmp_path / "x/a.zarr", "--out", tmp_path / "c.zarr")["notes"]
    assert notes[-1] == "2 instructions, and a policy is not told which to follow: pull it; push it"
    source = Store(tmp_path / "c.zarr").attrs["source"]
    assert source["demos"] == ["a/0", "a-2/1", "a-2/2"]
    assert source["instructions"] == ["pull it", "push it"]


def test_stores_that_do_not_fit_are_refused(parts: list[Path], lift_zarr: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    assert "of 'lift', not of 'pusht'" in refused(ddp("convert", parts[0], lift_zarr, "--out", out))
    assert "Name it with --out" in refused(ddp("convert", *parts))
    assert "--only does not apply" in refused(ddp("convert", *parts, "--only", ":1", "--out", out))
    shutil.copytree(parts[0], tmp_path / "copy.zarr")
    same = refused(ddp("convert", parts[0], tmp_path / "copy.zarr", "--out", out))
    repeated = f"episode 0 of '{tmp_path / 'copy.zarr'}' has the same observations and actions"
    assert f"{repeated} as episode 0 of '{parts[0]}'" in same
    itself = refused(ddp("convert", *parts, "--out", parts[1], "--overwrite"))
    assert "is the source itself" in itself
    assert ok_json("inspect", parts[1])["episodes"] == 2
    ok(ddp("convert", tmp_path / "r.zarr", "--rate", 10, "--task", "pusht", "--out", tmp_path / "all.zarr"))
    overlapping = refused(ddp("convert", parts[1], tmp_path / "all.zarr", "--out", out))
    assert "episode 1 of" in overlapping  # one could be trained on, and its copy held out
    for fit in ("pad", "crop"):
        command = (
            "convert",
            tmp_path / "r.zarr",
            "--rate",
            10,
            "--task",
            "pusht",
            "--only",
            ":1" if fit == "pad" else "1:",
        )
        ok(ddp(*command, "--image-size", "8x8", "--fit", fit, "--out", tmp_path / f"{fit}.zarr"))
    fits = refused(ddp("convert", tmp_path / "pad.zarr", tmp_path / "crop.zarr", "--out", out))
    assert 'cameras.img.fit "pad" instead of "crop"' in fits or 'cameras.img.fit "crop" instead of "pad"' in fits
    command = ("convert", tmp_path / "r.zarr", "--rate", 20, "--task", "pusht", "--out", tmp_path / "fast.zarr")
    ok(ddp(*command))
    assert "rate 20.0 instead of 10.0" in refused(ddp("convert", parts[0], tmp_path / "fast.zarr", "--out", out))
    assert "but not one written by `ddp convert`" in refused(
        ddp("convert", parts[0], tmp_path / "r.zarr", "--out", out)
    )
