"""`ddp convert` of what holds no states of the simulator: stores, LeRobot datasets, and stores to other formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import DdpError, close_match

if TYPE_CHECKING:
    from ddp_cli.data.lerobot_reader import LeRobotDataset
    from ddp_cli.data.store import Store

STORE_MARKS = ("zarr.json", ".zgroup")
"""One of these is in every store, of either zarr format."""

FORMATS = ("lerobot", "robomimic")
"""What a store can be turned into."""


@dataclass(frozen=True)
class CopyOptions:
    """What is said about a copy; the names are those of the options."""

    source: Path
    out: Path | None
    to: str | None
    task: str | None
    only: str | None
    actions: str | None
    zarr_format: int
    overwrite: bool
    json: bool

    def run(self, write: Callable[[Any], int], what: str = "steps") -> int:
        """`write` with a progress bar."""
        with console.progress(f"convert {self.source.name}") as update:
            return write(lambda done, total: update(done, total, what))

    def report(self, out: Path, episodes: int, steps: int) -> None:
        if self.json:
            console.print_json({"out": str(out), "episodes": episodes, "frames": steps})
        else:
            console.result(f"{out}: {episodes} episodes, {steps} steps, from {self.source}")


def check_format(name: str) -> None:
    """DdpError unless a store can be turned into `name`."""
    if name not in FORMATS:
        raise DdpError(f"unknown format '{name}'{close_match(name, FORMATS)}", f"Valid: --to {' or '.join(FORMATS)}.")


def copy(store: Store, said: CopyOptions) -> Path:
    """`store` as another store, or as what `said.to` names; returns what was made, or the store itself."""
    from ddp_cli.data.store import Store
    from ddp_cli.data.store_copy import copy_store

    if said.to is not None:
        return _turn(store, said.to, said)
    if said.out is None:
        return store.path
    out = said.out
    options.check_output(out, said.overwrite, STORE_MARKS)
    steps = said.run(lambda heard: copy_store(store, out, said.only, said.actions, said.zarr_format, heard))
    said.report(out, len(Store(out).episode_ends), steps)
    return out


def _turn(store: Store, to: str, said: CopyOptions) -> Path:
    from ddp_cli.data.lerobot_reader import INFO
    from ddp_cli.data.lerobot_writer import write_lerobot
    from ddp_cli.data.robomimic_writer import write_robomimic

    check_format(to)
    if said.out is None:
        raise DdpError("no output is named.", f"Say --out NAME{'.hdf5' if to == 'robomimic' else ''}.")
    out = said.out
    if to == "robomimic":
        options.check_output(out, said.overwrite)
        steps = said.run(lambda heard: write_robomimic(store, out, heard))
    else:
        options.check_output(out, said.overwrite, (INFO,))
        steps = said.run(lambda heard: write_lerobot(store, out, heard), "pictures")
    said.report(out, len(store.episode_ends), steps)
    return out


def read(data: LeRobotDataset, said: CopyOptions) -> Path:
    """The store that is made of `data`."""
    from ddp_cli.data.lerobot_reader import read_lerobot
    from ddp_cli.data.replay_report import in_words
    from ddp_cli.data.store import Store

    out = said.out or options.new_store(data.task.name, data.obs)
    options.check_output(out, said.overwrite, STORE_MARKS)
    steps = said.run(lambda heard: read_lerobot(data, out, said.only, said.zarr_format, heard))
    store = Store(out)
    said.report(out, len(store.episode_ends), steps)
    if not said.json:
        console.result(f"check {in_words(store.check)}")
    return out
