from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ddp, ok_json, refused

from ddp_cli.data.check_summary import check_summary
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.episode_selection import select_episodes
from ddp_cli.data.store import Store
from ddp_cli.data.store_copy import copy_store
from ddp_cli.errors import DataError


def no_progress(*_: object) -> None:
    """A progress callback that does nothing."""


def test_episodes_are_selected_by_slices() -> None:
    assert select_episodes(4, None, "x") == [0, 1, 2, 3]
    assert select_episodes(4, ":2", "x") == [0, 1]
    assert select_episodes(4, "::2", "x") == [0, 2]
    assert select_episodes(4, "-1:", "x") == [3]
    for text in ("2", "a:b", "1:2:3:4", ""):
        with pytest.raises(DataError, match="--only :50"):
            select_episodes(4, text, "x")
    with pytest.raises(DataError, match="'4:' selects none of the 4 episodes of x"):
        select_episodes(4, "4:", "x")


def test_copy_holds_the_selected_episodes_unchanged(lift_store: Store, tmp_path: Path) -> None:
    steps = copy_store(lift_store, tmp_path / "one.zarr", "1:", None, 2, no_progress)
    copy = Store(tmp_path / "one.zarr")
    start = int(lift_store.episode_ends[0])
    assert list(copy.episode_ends) == [steps]
    for key in ("agentview_image", "robot0_eye_in_hand_image", "object", "robot0_eef_quat", "action"):
        np.testing.assert_array_equal(copy.read(key), lift_store.read(key, rows=slice(start, None)))
    assert copy.attrs["source"]["demos"] == ["demo_1"]
    assert copy.check == lift_store.check | {"checked_demos": ["demo_1"], "inherited": True}
    assert copy.attrs["render"] == "fast"
    assert (tmp_path / "one.zarr/.zgroup").exists()


def test_actions_of_a_copy_match_those_of_a_conversion(lift_demos: Path, lift_store: Store, tmp_path: Path) -> None:
    """The copy computes goals from observed poses; the conversion asks the controller of the simulator."""
    convert(lift_demos, tmp_path / "converted.zarr", 1, no_progress, ConvertOptions("state", "absolute", check=0))
    copy_store(lift_store, tmp_path / "absolute.zarr", None, "absolute", 3, no_progress)
    converted, copied = Store(tmp_path / "converted.zarr"), Store(tmp_path / "absolute.zarr")
    np.testing.assert_allclose(copied.read("action"), converted.read("action"), atol=1e-6)
    assert copied.attrs["action"] == converted.attrs["action"]
    copy_store(copied, tmp_path / "delta.zarr", None, "delta", 3, no_progress)
    np.testing.assert_allclose(Store(tmp_path / "delta.zarr").read("action"), lift_store.read("action"), atol=1e-5)


def change_check(store: Path, without: str = "", **values: object) -> Store:
    content = json.loads((store / "zarr.json").read_text())
    content["attributes"]["check"] |= values
    content["attributes"]["check"].pop(without, None)
    (store / "zarr.json").write_text(json.dumps(content))
    return Store(store)


def test_a_copy_is_verified_as_far_as_its_source(lift_demos: Path, tmp_path: Path) -> None:
    convert(lift_demos, tmp_path / "s.zarr", 1, no_progress, ConvertOptions("state", check=1))
    store = Store(tmp_path / "s.zarr")

    def check_of_copy(name: str, only: str | None, convention: str | None = None) -> tuple[str, str]:
        copy_store(store, tmp_path / name, only, convention, 3, no_progress)
        check = Store(tmp_path / name).check
        return check["result"], check["why"]

    assert check_of_copy("a", "1:") == ("passed", "")  # chunks of every demo were replayed
    assert "passed in the store that it was copied from: 1 demo" in check_summary(Store(tmp_path / "a").check)
    copy_store(Store(tmp_path / "a"), tmp_path / "copy-of-a", None, None, 2, no_progress)
    assert Store(tmp_path / "copy-of-a").check == Store(tmp_path / "a").check
    why = "the actions were computed from delta ones, which passed the replay check"
    assert check_of_copy("b", None, "absolute") == ("not verified", why)
    store = change_check(tmp_path / "s.zarr", without="checked_demos")  # as written by earlier versions
    assert check_of_copy("c", "1:") == ("not verified", "none of the replayed demos is among these")
    assert check_of_copy("d", ":1") == ("passed", "")
    store = change_check(tmp_path / "s.zarr", result="failed", why="reason")
    assert check_of_copy("e", None, "absolute") == ("failed", "reason")


def test_an_early_state_store_that_does_not_say_so_is_copied(lift_demos: Path, tmp_path: Path) -> None:
    convert(lift_demos, tmp_path / "s.zarr", 1, no_progress, ConvertOptions("state", check=0))
    content = json.loads((tmp_path / "s.zarr/zarr.json").read_text())
    del content["attributes"]["obs"]
    (tmp_path / "s.zarr/zarr.json").write_text(json.dumps(content))
    copy_store(Store(tmp_path / "s.zarr"), tmp_path / "copy.zarr", None, None, 3, no_progress)
    copy = Store(tmp_path / "copy.zarr")
    assert (copy.attrs["obs"], copy.image_keys) == ("state", [])
    np.testing.assert_array_equal(copy.read("object"), Store(tmp_path / "s.zarr").read("object"))


def test_interrupted_copy_is_resumed(lift_store: Store, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_store(lift_store, tmp_path / "c.zarr", None, None, 3, interrupt)
    assert not (tmp_path / "c.zarr").exists()
    steps_done: list[int] = []
    copy_store(lift_store, tmp_path / "c.zarr", None, None, 3, lambda done, _: steps_done.append(done))
    assert steps_done == list(lift_store.episode_ends)
    np.testing.assert_array_equal(Store(tmp_path / "c.zarr").read("action"), lift_store.read("action"))


def test_convert_copies_a_store(lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is a store already" in refused(ddp("convert", lift_zarr))
    assert "is the source itself" in refused(ddp("convert", lift_zarr, "--out", lift_zarr, "--overwrite"))
    same_path = lift_zarr.parent / ".." / lift_zarr.parent.name / lift_zarr.name
    assert "is the source itself" in refused(ddp("convert", lift_zarr, "--out", same_path, "--overwrite"))
    inside = refused(ddp("convert", lift_zarr, "--out", lift_zarr / "data/copy.zarr"))
    assert f"copy.zarr' is inside '{lift_zarr}'" in " ".join(inside.split())
    assert not (lift_zarr / "data/copy.zarr").exists()
    assert ok_json("convert", lift_zarr, "--out", "a.zarr", "--only", ":1")["episodes"] == 1
    assert "--overwrite" in refused(ddp("convert", lift_zarr, "--out", "a.zarr"))
    assert ok_json("inspect", "a.zarr")["episodes"] == 1
