"""Files that something happened to: each ends in a DdpError that names it, never in anything else, never in a store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.demo_file import Demo, DemoFile
from ddp_cli.data.demo_writer import DemoWriter
from ddp_cli.errors import DataError, DdpError

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "d.hdf5"
    rng = np.random.default_rng(0)
    with DemoWriter(path, {"env_name": "Lift"}, {}) as writer:
        for seed in range(3):
            writer.append(Demo(rng.normal(size=(6, 32)), rng.uniform(-1, 1, (6, 7)), "<mujoco/>", seed))
        writer.finish()
    return path.read_bytes()


def read_all(path: Path) -> list[Demo]:
    with DemoFile(path) as file:
        file.reason_unusable("agentview_image", file.names)
        return list(file)


def refused(path: Path) -> bool:
    """Whether the file is refused by its name; if not, what is read of it is sound."""
    try:
        demos = read_all(path)
    except DdpError as e:
        words = e.message
    else:
        for demo in demos:
            assert demo.states.shape == (len(demo.actions), 32)
            assert all(np.isfinite(array).all() for array in demo.arrays.values())
        return False
    assert "d.hdf5" in words
    return True


@MANY
@given(st.data())
def test_truncated_anywhere(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert refused(path)


@MANY
@given(st.data())
def test_bytes_that_changed(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 20))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "d.hdf5"
    path.write_bytes(damaged)
    refused(path)


ARRAYS = st.one_of(
    st.none(),
    st.sampled_from(["group", "text", "soft link"]),
    st.tuples(
        st.lists(st.sampled_from([0, 1, 6, 7, 14, 32]), min_size=0, max_size=3).map(tuple),
        st.sampled_from(["f8", "f4", "i4", "u1", "?", "c16", "S3"]),
        st.sampled_from([0.0, 1.0, np.nan, np.inf]),
    ),
)
ATTRIBUTES = st.one_of(
    st.integers(), st.floats(), st.text(max_size=20).filter(lambda t: "\x00" not in t), st.binary(max_size=20),
    st.sampled_from(['{"env_name": "Lift"}', '{"env_name": null}', '{"env_name": "Lift", "env_kwargs": []}', "[1"]),
)  # fmt: skip


@MANY
@given(states=ARRAYS, actions=ARRAYS, env_args=ATTRIBUTES, model=ATTRIBUTES, seed=ATTRIBUTES)
def test_anything_in_the_place_of_what_is_expected(
    tmp_path: Path, states: object, actions: object, env_args: object, model: object, seed: object
) -> None:
    path = tmp_path / "d.hdf5"
    with h5py.File(path, "w") as f:
        demo = f.create_group("data/demo_0")
        try:
            f["data"].attrs["env_args"] = env_args
            demo.attrs["model_file"], demo.attrs["seed"] = model, seed
        except (ValueError, OverflowError, TypeError):
            return  # HDF5 itself does not take it
        for key, value in (("states", states), ("actions", actions)):
            if value == "group":
                demo.create_group(key)
            elif value == "soft link":
                demo[key] = h5py.SoftLink("/data")
            elif value == "text":
                demo[key] = "text"
            elif isinstance(value, tuple):
                with np.errstate(invalid="ignore"):
                    demo[key] = np.full(value[0], value[2]).astype(value[1])
    refused(path)


def spoil(source: Path, path: Path) -> Path:
    """Six demos, of which the second repeats the first, the fourth is not finite and the sixth lacks its states."""
    with DemoFile(source) as file:
        good = list(file)
    later = np.eye(32)[0] * 1e-9  # another time, so no repetition
    shifted = [dataclasses.replace(demo, states=demo.states + later) for demo in good]
    with DemoWriter(path, {"env_name": "Lift"}, {}) as writer:
        for demo in (good[0], good[0], good[1], *shifted, shifted[0]):
            writer.append(demo)
        writer.finish()
    with h5py.File(path, "r+") as f:
        f["data/demo_3/actions"][2, 1] = np.nan
        del f["data/demo_5/states"]
    return path


def test_bad_demos_stop_a_conversion_or_are_left_out(lift_demos: Path, tmp_path: Path) -> None:
    path = spoil(lift_demos, tmp_path / "d.hdf5")
    with pytest.raises(DataError, match="demo_1 repeats demo_0.*--skip-bad"):
        convert(path, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", check=0))
    assert list(tmp_path.iterdir()) == [path]
    done = convert(path, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", check=0, skip_bad=True))
    assert done.episodes == 3
    assert list(done.left_out) == ["demo_1", "demo_3", "demo_5"]
    assert "actions[2, 1] is nan" in done.left_out["demo_3"]


def test_a_file_of_nothing_but_bad_demos_is_refused(lift_demos: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(lift_demos.read_bytes())
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            demo["actions"][0] = np.inf
    with pytest.raises(DataError, match="none of 2 demos"):
        convert(path, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", skip_bad=True))
    assert list(tmp_path.iterdir()) == [path]
