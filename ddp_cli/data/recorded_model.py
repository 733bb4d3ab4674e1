"""The model of a demonstration, where its file keeps it: see demo_file.py."""

from __future__ import annotations

import zlib
from pathlib import Path

import h5py

from ddp_cli.data.hdf5 import COPY_AGAIN, HDF5_ERRORS
from ddp_cli.errors import DataError


def read_model_xml(path: Path, file: h5py.File, name: str) -> str:
    """The model of the demo `name` in `file`, which is open at `path`, as XML; empty if none was recorded.

    DataError if it is damaged.
    """
    attrs = file["data"][name].attrs
    if "model_file" in attrs:
        text = str(attrs["model_file"])
        return text if text.lstrip().startswith("<") else _read_model_file(path, text)
    if "model" in attrs:
        try:
            return zlib.decompress(file["models"][attrs["model"]][:].tobytes()).decode()
        except HDF5_ERRORS as e:
            raise DataError(f"'{path}' {name}: its model is missing or damaged.", COPY_AGAIN) from e
    return ""


def _read_model_file(path: Path, name: str) -> str:
    """A model in the folder `models` beside the file, as written by robosuite 1.0; empty if it is missing."""
    model_path = path.parent / "models" / Path(name).name
    return model_path.read_text(errors="replace") if model_path.is_file() else ""
