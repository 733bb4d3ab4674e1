"""Names of the demos in a file of raw demonstrations, and the subsets that its filter keys (mask/...) list."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import h5py

from ddp_cli.data.hdf5 import report_read_errors
from ddp_cli.errors import DataError, close_match


def find_demo_names(data: h5py.Group) -> list[str]:
    """The groups with actions, and whatever is called demo_N, in the order of the numbers in their names."""

    def is_demo(name: str) -> bool:
        member = data.get(name)
        return bool(re.fullmatch(r"demo_\d+", name)) or (isinstance(member, h5py.Group) and "actions" in member)

    return sort_names(filter(is_demo, data))


def list_filter_keys(path: Path, file: h5py.File) -> list[str]:
    """The filter keys of `file`, which was opened from `path`."""
    with report_read_errors(path, "the group 'mask'"):
        mask = file.get("mask")
        return sorted(mask) if isinstance(mask, h5py.Group) else []


def select_by_filter(path: Path, file: h5py.File, names: list[str], key: str) -> tuple[list[str], list[str]]:
    """The demos among `names` that the filter key lists, and those that it lists besides.

    DataError if there is no such filter key, or if it lists none of `names`.
    """
    filter_keys = list_filter_keys(path, file)
    if key not in filter_keys:
        raise DataError(
            f"'{path}' has no filter key '{key}'{close_match(key, filter_keys)}",
            f"Valid: {', '.join(filter_keys)}." if filter_keys else "It has none: leave --filter out.",
        )
    with report_read_errors(path, f"mask/{key}"):
        listed = {x.decode() if isinstance(x, bytes) else str(x) for x in file["mask"][key][:]}
    selected = [name for name in names if name in listed]
    if not selected:
        fault = "lists none of the demonstrations in the file" if listed else "lists no demonstration"
        raise DataError(f"'{path}': the filter key '{key}' {fault}.", "Choose another, or leave --filter out.")
    return selected, sort_names(listed - set(names))


def sort_names(names: Iterable[str]) -> list[str]:
    """demo_2 before demo_10."""
    return sorted(names, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])
