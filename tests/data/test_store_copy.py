from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ddp, ok, ok_json, refused

from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.store import Store
from ddp_cli.data.store_copy import choose, copy_store
from ddp_cli.errors import DataError


def quiet(*_: object) -> None:
    """No progress."""


def test_episodes_are_chosen_by_slices() -> None:
    assert choose(4, None, "x") == [0, 1, 2, 3]
    assert choose(4, ":2", "x") == [0, 1]
    assert choose(4, "::2", "x") == [0, 2]
    assert choose(4, "-1:", "x") == [3]
    for text in ("2", "a:b", "1:2:3:4", ""):
        with pytest.raises(DataError, match="--only :50"):
            choose(4, text, "x")
    with pytest.raises(DataError, match="x has 4 episodes, of which '4:' chooses none"):
        choose(4, "4:", "x")


def test_a_copy_is_the_same_with_fewer_episodes(lift_store: Store, tmp_path: Path) -> None:
    steps = copy_store(lift_store, tmp_path / "one.zarr", "1:", None, 2, quiet)
    copy = Store(tmp_path / "one.zarr")
    start = int(lift_store.episode_ends[0])
    assert list(copy.episode_ends) == [steps]
    for key in ("agentview_image", "robot0_eye_in_hand_image", "object", "robot0_eef_quat", "action"):
        np.testing.assert_array_equal(copy.read(key), lift_store.read(key, rows=slice(start, None)))
    assert copy.attrs["source"]["demos"] == ["demo_1"]
    assert (copy.check, copy.attrs["render"]) == (lift_store.check, "fast")
    assert (tmp_path / "one.zarr/.zgroup").exists()


def test_actions_of_a_copy_are_those_of_a_conversion(lift_demos: Path, lift_store: Store, tmp_path: Path) -> None:
    """The goals follow from where the hand was seen; the conversion asks the simulator's controller."""
    convert(lift_demos, tmp_path / "asked.zarr", 1, quiet, ConvertOptions("state", "absolute", check=0))
    copy_store(lift_store, tmp_path / "abs.zarr", None, "absolute", 3, quiet)
    asked, computed = Store(tmp_path / "asked.zarr"), Store(tmp_path / "abs.zarr")
    np.testing.assert_allclose(computed.read("action"), asked.read("action"), atol=1e-6)
    assert computed.attrs["action"] == asked.attrs["action"]
    copy_store(computed, tmp_path / "back.zarr", None, "delta", 3, quiet)
    np.testing.assert_allclose(Store(tmp_path / "back.zarr").read("action"), lift_store.read("action"), atol=1e-5)


def test_an_interrupted_copy_goes_on(lift_store: Store, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_store(lift_store, tmp_path / "c.zarr", None, None, 3, interrupt)
    assert not (tmp_path / "c.zarr").exists()
    begun: list[int] = []
    copy_store(lift_store, tmp_path / "c.zarr", None, None, 3, lambda done, _: begun.append(done))
    assert begun == list(lift_store.episode_ends)
    np.testing.assert_array_equal(Store(tmp_path / "c.zarr").read("action"), lift_store.read("action"))


def test_the_command_on_a_store(lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is a store already" in refused(ddp("convert", lift_zarr))
    assert "is the store itself" in refused(ddp("convert", lift_zarr, "--out", lift_zarr, "--overwrite"))
    itself = lift_zarr.parent / ".." / lift_zarr.parent.name / lift_zarr.name
    assert "is the store itself" in refused(ddp("convert", lift_zarr, "--out", itself, "--overwrite"))
    assert ok_json("convert", lift_zarr, "--out", "a.zarr", "--only", ":1")["episodes"] == 1
    assert "--overwrite" in refused(ddp("convert", lift_zarr, "--out", "a.zarr"))
    said = ok(ddp("convert", lift_zarr, "--inspect")).stdout
    assert "store of ddp" in said
    assert json.loads(ok(ddp("convert", "a.zarr", "--inspect", "--json")).stdout)["episodes"] == 1
