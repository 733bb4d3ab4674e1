"""What `ddp convert` prints about demonstrations of robosuite that were converted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddp_cli import console

if TYPE_CHECKING:
    from ddp_cli.data.conversion import ConversionResult
    from ddp_cli.tasks import Task


def report_conversion(out: Path, task: Task, result: ConversionResult, seconds: float, json: bool) -> None:
    """Prints the result of a conversion that took `seconds`."""
    from dataclasses import asdict

    if json:
        console.print_json({"out": str(out), **asdict(result), "seconds": seconds})
        return
    console.result(
        f"{out}: {result.episodes} episodes, {result.frames} steps, {result.megabytes:.1f} MB, "
        f"in {console.duration(seconds)}{_image_origin(task, result, seconds)}"
    )
    for note in result.notes:
        console.result(f"note: {note}")
    for key, reason in result.computed.items():
        console.result(f"not copied: {key} ({reason})")
    for name, reason in result.left_out.items():
        console.result(f"skipped {name}: {reason}")
    _report_check(result)


def _image_origin(task: Task, result: ConversionResult, seconds: float) -> str:
    """How many images per second were written, and where they are from; empty for stores without images."""
    keys = list(task.images(result.obs))
    if not keys:
        return ""
    copied = [key for key in keys if key in result.observations]
    if len(copied) == len(keys):
        origin = "copied from the file"
    else:
        origin = f"{', '.join(copied)} copied from the file, the others rendered" if copied else "rendered"
    return f" ({len(keys) * result.frames / seconds:.0f} images/s, {origin})"


def _report_check(result: ConversionResult) -> None:
    from ddp_cli.data.check_summary import check_summary

    text = f"check {check_summary(result.check)}"
    if result.check["result"] == "failed":
        console.warn(f"{text} `ddp train` refuses this store without --allow-unverified.")
    else:
        console.result(text)
