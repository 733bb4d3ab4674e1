"""`ddp convert` for sources that hold no simulator states: stores and LeRobot datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ddp_cli import console
from ddp_cli.choices import ActionConvention, DatasetFormat, PolicyEpisodes
from ddp_cli.commands import options
from ddp_cli.errors import DdpError

if TYPE_CHECKING:
    from ddp_cli.data.lerobot_reader import LeRobotDataset
    from ddp_cli.data.store import Store

Result = TypeVar("Result")


@dataclass(frozen=True)
class CopyOptions:
    """The options of `ddp convert` that apply to what is copied: folders, and recordings of any robot."""

    source: Path
    out: Path | None
    to: DatasetFormat | None
    task: str | None
    only: str | None
    actions: ActionConvention | None
    zarr_format: int
    check: int
    overwrite: bool
    json: bool
    keep: PolicyEpisodes | None = None

    def run(self, out: Path, markers: tuple[str, ...], write: Callable[[Any], Result], unit: str = "steps") -> Result:
        """What `write` returns, called with a progress callback while `out` is reserved: `options.reserve_output`."""
        _check_outside(out, self.source)
        with (
            options.reserve_output(out, self.overwrite, markers),
            console.progress(f"convert {self.source.name}") as update,
        ):
            return write(lambda done, total: update(done, total, unit))

    def report(self, out: Path, episodes: int, steps: int, notes: Sequence[str] = (), sources: str = "") -> None:
        """Prints what was written, and `notes` on what differs from the source, or from several `sources`."""
        if self.json:
            console.print_json({"out": str(out), "episodes": episodes, "frames": steps, "notes": list(notes)})
            return
        console.result(f"{out}: {episodes} episodes, {steps} steps, from {sources or self.source}")
        for note in notes:
            console.result(f"note: {note}")


def _check_outside(out: Path, source: Path) -> None:
    """DdpError if `out` is `source` or inside it."""
    if out.resolve().is_relative_to(source.resolve()):
        what = "the source itself" if out.resolve() == source.resolve() else f"inside '{source}'"
        raise DdpError(f"the output '{out}' is {what}.", "Name another one with --out.")


def convert_store(store: Store, copy: CopyOptions) -> Path:
    """Copies `store` to another store, or converts it to the dataset format `copy.to`; returns what was written."""
    from ddp_cli.data.store import STORE_MARKERS, Store
    from ddp_cli.data.store_copy import copy_store

    if copy.to is not None:
        return _export_dataset(store, copy.to, copy)
    out = copy.out
    if out is None:
        raise DdpError(
            f"'{copy.source}' is a store already.",
            "Copy it with --out STORE.zarr, convert it with --to lerobot, or look at it with `ddp preview`.",
        )
    steps = copy.run(
        out,
        STORE_MARKERS,
        lambda progress: copy_store(store, out, copy.only, copy.actions, copy.zarr_format, progress, copy.keep),
    )
    copy.report(out, len(Store(out).episode_ends), steps)
    return out


def merge(sources: Sequence[Path], copy: CopyOptions) -> Path:
    """Merges the stores `sources` to one, and returns it."""
    from ddp_cli.data.check_summary import check_summary
    from ddp_cli.data.store import STORE_MARKERS, Store
    from ddp_cli.data.store_merge import instructions, merge_stores

    out = copy.out
    if out is None:
        raise DdpError(f"{len(sources)} sources are merged to a new store.", "Name it with --out STORE.zarr.")
    for source in sources:
        _check_outside(out, source)
    stores = [Store(source) for source in sources]
    counts = copy.run(out, STORE_MARKERS, lambda progress: merge_stores(stores, out, copy.zarr_format, progress))
    store = Store(out)
    parts = [f"{source}: {count} episodes" for source, count in zip(sources, counts, strict=True)]
    texts = instructions(stores)
    if len(texts) > 1:
        parts.append(f"{len(texts)} instructions, and a policy is not told which to follow: {'; '.join(texts)}")
    copy.report(out, len(store.episode_ends), int(store.episode_ends[-1]), parts, f"{len(sources)} stores")
    if not copy.json:
        console.result(f"check {check_summary(store.check)}")
    return out


def _export_dataset(store: Store, to: DatasetFormat, copy: CopyOptions) -> Path:
    from ddp_cli.data.lerobot_layout import INFO_PATH
    from ddp_cli.data.lerobot_writer import write_lerobot
    from ddp_cli.data.robomimic_writer import write_robomimic

    out = copy.out
    if out is None:
        raise DdpError(f"--to {to} needs an output.", f"Add --out NAME{'.hdf5' if to == 'robomimic' else ''}.")
    if store.task.simulator is None:
        raise DdpError(
            f"--to {to} needs a task of robosuite, whose observations it names; '{store.path}' is of another robot.",
            "Its arrays can be read with zarr: --zarr-format 2 writes a replay buffer.",
        )
    if to == "robomimic":
        steps = copy.run(out, (), lambda progress: write_robomimic(store, out, progress))
    else:
        steps = copy.run(out, (INFO_PATH,), lambda progress: write_lerobot(store, out, progress), "images")
    copy.report(out, len(store.episode_ends), steps)
    return out


def convert_lerobot(dataset: LeRobotDataset, copy: CopyOptions) -> Path:
    """Converts a LeRobot dataset to a store, and returns it."""
    from ddp_cli.data.check_summary import check_summary
    from ddp_cli.data.lerobot_conversion import convert_lerobot
    from ddp_cli.data.store import STORE_MARKERS, Store

    out = copy.out or options.default_store(dataset.task.name, dataset.obs)
    steps = copy.run(
        out,
        STORE_MARKERS,
        lambda progress: convert_lerobot(dataset, out, copy.only, copy.zarr_format, progress, copy.check > 0),
    )
    store = Store(out)
    copy.report(out, len(store.episode_ends), steps, dataset.notes)
    if not copy.json:
        console.result(f"check {check_summary(store.check)}")
    return out
