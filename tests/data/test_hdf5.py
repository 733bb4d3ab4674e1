"""Files that HDF5 cannot open or read, each with its own cause; and data that HDF5 silently reads as zeros."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.hdf5 import check_complete
from ddp_cli.errors import DataError

ENV_ARGS = '{"env_name": "Lift"}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one demo of 40 steps."""
    path = tmp_path / "d.hdf5"
    states = np.zeros((40, 32))
    states[:, 0] = np.arange(40) / 20
    with h5py.File(path, "w") as f:
        f.create_group("data").attrs["env_args"] = ENV_ARGS
        f["data/demo_0/states"], f["data/demo_0/actions"] = states, np.zeros((40, 7))
    return path


def read(path: Path) -> None:
    with DemoFile(path) as file:
        file.read("demo_0")


@contextmanager
def opened_elsewhere(path: Path) -> Iterator[None]:
    """Another process has the file open for writing."""
    code = f"import h5py, sys; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    try:
        yield
    finally:
        process.communicate()


def test_a_file_that_is_open_for_writing_elsewhere(path: Path) -> None:
    with opened_elsewhere(path), pytest.raises(DataError, match="is open for writing in another program"):
        read(path)
    read(path)


def test_a_file_that_was_not_closed(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.hdf5"
    with h5py.File(tmp_path / "latest.hdf5", "w", libver="latest") as f:
        f.create_group("data")
        f.swmr_mode = True
        f.flush()
        copy.write_bytes((tmp_path / "latest.hdf5").read_bytes())
    with pytest.raises(DataError, match="marked as open for writing.*h5clear -s"):
        read(copy)


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, not an HDF5 file"):
        DemoFile(tmp_path)
    with pytest.raises(DataError, match="no file '.*gone.hdf5'"):
        DemoFile(tmp_path / "gone.hdf5")


def test_a_truncated_file_is_called_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"truncated HDF5 file: it has [\d,]+ bytes, fewer than its header declares"):
        read(path)


def test_a_compression_filter_that_is_not_installed(path: Path) -> None:
    with h5py.File(path, "r+") as f:
        del f["data/demo_0/actions"]
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_chunk((40, 7))
        options.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))  # zstd, of hdf5plugin
        space = h5py.h5s.create_simple((40, 7))
        dataset = h5py.h5d.create(f["data/demo_0"].id, b"actions", h5py.h5t.NATIVE_DOUBLE, space, options)
        dataset.write_direct_chunk((0, 0), b"compressed")
    with pytest.raises(DataError, match="demo_0/actions is compressed with a filter.*pip install hdf5plugin"):
        read(path)


def test_chunks_that_were_never_written_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as f:
        del f["data/demo_0/actions"]
        f["data/demo_0"].create_dataset("actions", (40, 7), "f8", chunks=(10, 7))[:30] = 1.0
    with pytest.raises(DataError, match="1 of 4 chunks of demo_0/actions were never written"):
        read(path)
    with h5py.File(path, "r+") as f:
        f["data/demo_0/actions"][30:] = 1.0
    read(path)


def test_an_array_that_was_never_written_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as f:
        del f["data/demo_0/actions"]
        f["data/demo_0"].create_dataset("actions", (40, 7), "f8")
    with pytest.raises(DataError, match="demo_0/actions was never written"):
        read(path)


def test_an_array_of_more_than_4_gib_is_complete(path: Path) -> None:
    """A camera of 640x480 pixels over 94 seconds at 50 Hz. The file is sparse: it takes no space on the disk."""
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((4700, 480, 640, 3))
    with h5py.File(path, "r+") as f:
        h5py.h5d.create(f.id, b"top", h5py.h5t.NATIVE_UINT8, space, options)
        assert f["top"].nbytes > 1 << 32
        check_complete(path, f["top"], "top")


@pytest.mark.parametrize("n_steps", [1000, 1 << 40, 1 << 61])  # the last: more bytes than 64 bits can count
@pytest.mark.parametrize(
    ("chunks", "message"), [(None, "demo_0/actions is"), ((10, 8), "chunks of demo_0/actions were never written")]
)
def test_a_header_that_declares_another_shape_is_refused(
    path: Path, n_steps: int, chunks: tuple[int, int] | None, message: str
) -> None:
    with h5py.File(path, "r+") as f:
        del f["data/demo_0/actions"]
        f["data/demo_0"].create_dataset("actions", data=np.zeros((40, 8)), chunks=chunks)
    content, shape = path.read_bytes(), np.array([40, 8, 40, 8])  # and the largest shape
    assert content.count(shape.tobytes()) == 1
    path.write_bytes(content.replace(shape.tobytes(), np.array([n_steps, 8] * 2).tobytes()))
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_virtual_array_of_a_missing_file_is_refused(path: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "source.hdf5", "w") as f:
        f["actions"] = np.ones((40, 7))
    layout = h5py.VirtualLayout((40, 7), "f8")
    layout[:] = h5py.VirtualSource("source.hdf5", "actions", (40, 7))
    with h5py.File(path, "r+") as f:
        del f["data/demo_0/actions"]
        f["data/demo_0"].create_virtual_dataset("actions", layout)
    read(path)
    (tmp_path / "source.hdf5").unlink()
    with pytest.raises(DataError, match=r"demo_0/actions is made of other files, of which 'source.hdf5' is missing"):
        read(path)
