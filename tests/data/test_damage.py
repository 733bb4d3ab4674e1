"""Damaged files: each raises a DdpError that names the file, no other exception, and leaves no store."""

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
from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.demo_writer import DemoWriter
from ddp_cli.data.recorded_observations import reason_unusable
from ddp_cli.errors import DataError, DdpError

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("intact") / "d.hdf5"
    rng = np.random.default_rng(0)
    with DemoWriter(path, {"env_name": "Lift"}, {}) as writer:
        for seed in range(3):
            states = rng.normal(size=(6, 32))
            states[:, 0] = np.arange(6) / 20  # time
            writer.append(Demo(states, rng.uniform(-1, 1, (6, 7)), "<mujoco/>", seed))
        writer.finish()
    return path.read_bytes()


def read_all(path: Path) -> list[Demo]:
    with DemoFile(path) as file:
        reason_unusable(file, "agentview_image", file.names)
        return list(file)


def is_refused(path: Path) -> bool:
    """Whether reading raises a DdpError that names the file; if it does not, the demos must be valid."""
    try:
        demos = read_all(path)
    except DdpError as e:
        message = e.message
    else:
        for demo in demos:
            assert demo.states.shape == (len(demo.actions), 32)
            assert all(np.isfinite(array).all() for array in demo.arrays.values())
        return False
    assert "d.hdf5" in message
    return True


@FUZZ
@given(st.data())
def test_truncated_files_are_refused(intact: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(intact[: data.draw(st.integers(0, len(intact) - 1))])
    assert is_refused(path)


@FUZZ
@given(st.data())
def test_changed_bytes_raise_no_other_error(intact: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(intact)
    for _ in range(data.draw(st.integers(1, 20))):
        damaged[data.draw(st.integers(0, len(intact) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "d.hdf5"
    path.write_bytes(damaged)
    is_refused(path)


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


@FUZZ
@given(states=ARRAYS, actions=ARRAYS, env_args=ATTRIBUTES, model=ATTRIBUTES, seed=ATTRIBUTES)
def test_unexpected_content_raises_no_other_error(
    tmp_path: Path, states: object, actions: object, env_args: object, model: object, seed: object
) -> None:
    path = tmp_path / "d.hdf5"
    with h5py.File(path, "w") as f:
        demo = f.create_group("data/demo_0")
        try:
            f["data"].attrs["env_args"] = env_args
            demo.attrs["model_file"], demo.attrs["seed"] = model, seed
        except (ValueError, OverflowError, TypeError):
            return  # HDF5 cannot store it
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
    is_refused(path)


def write_invalid_demos(source: Path, path: Path) -> Path:
    """Six demos: the second repeats the first, the fourth is not finite, the sixth has no states."""
    with DemoFile(source) as file:
        valid = list(file)
    time_offset = np.eye(32)[0] * 1e-9  # the first state value is time: with another one a demo is no repetition
    shifted = [dataclasses.replace(demo, states=demo.states + time_offset) for demo in valid]
    with DemoWriter(path, {"env_name": "Lift"}, {}) as writer:
        for demo in (valid[0], valid[0], valid[1], *shifted, shifted[0]):
            writer.append(demo)
        writer.finish()
    with h5py.File(path, "r+") as f:
        f["data/demo_3/actions"][2, 1] = np.nan
        del f["data/demo_5/states"]
    return path


def test_invalid_demos_stop_a_conversion_or_are_skipped(lift_demos: Path, tmp_path: Path) -> None:
    path = write_invalid_demos(lift_demos, tmp_path / "d.hdf5")
    with pytest.raises(DataError, match="demo_1 repeats demo_0.*--skip-bad"):
        convert(path, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", check=0))
    assert list(tmp_path.iterdir()) == [path]
    result = convert(path, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", check=0, skip_bad=True))
    assert result.episodes == 3
    assert list(result.left_out) == ["demo_1", "demo_3", "demo_5"]
    assert "actions[2, 1] is nan" in result.left_out["demo_3"]


def test_a_file_without_valid_demos_is_refused(lift_demos: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(lift_demos.read_bytes())
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            demo["actions"][0] = np.inf
    with pytest.raises(DataError, match="none of 2 demos is valid"):
        convert(path, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", skip_bad=True))
    assert list(tmp_path.iterdir()) == [path]
