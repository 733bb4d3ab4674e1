"""The reports of a checkpoint that its run holds in eval/: episodes, and errors on recorded ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_cli.errors import DataError
from ddp_cli.evaluation.open_loop import BASELINES, POLICY
from ddp_cli.evaluation.report import EvalReport, evaluated_checkpoint, parse_report, recorded_checkpoint, report_folder


@dataclass(frozen=True)
class OpenLoopError:
    """Errors of a part of the action, in `unit`: means over episodes, None where nothing could be compared."""

    part: str
    unit: str
    policy: float | None
    interval: tuple[float, float] | None
    """95% interval of `policy`; None for a single episode."""
    baselines: dict[str, float | None]
    """By the keys of `open_loop.BASELINES`."""


@dataclass(frozen=True)
class OpenLoopReport:
    """Predicted actions of a checkpoint against recorded ones."""

    checkpoint: str
    episodes: int
    held_out: bool
    """Whether it is known that the episodes were not trained on."""
    sampler: str
    inference_steps: int
    errors: list[OpenLoopError]


@dataclass(frozen=True)
class StoredReports:
    """The evaluations of one checkpoint."""

    episodes: list[EvalReport] = field(default_factory=list)
    open_loop: list[OpenLoopReport] = field(default_factory=list)


def read_stored_reports(checkpoint: Path) -> StoredReports:
    """The reports on `checkpoint` in eval/ of its run, by name; none for a checkpoint outside of a run. Files that are
    no reports are skipped.
    """
    reports = StoredReports()
    folder = checkpoint.resolve()
    written = report_folder(folder)
    for path in sorted(written.glob("*.json")) if written else ():
        try:
            content = json.loads(path.read_text())
            if evaluated_checkpoint(path, recorded_checkpoint(content)).resolve() != folder:
                continue
            if "parts" in content:
                reports.open_loop.append(_parse_open_loop(content))
            else:
                reports.episodes.append(parse_report(path, content))
        except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            continue
    return reports


def _parse_open_loop(content: dict[str, Any]) -> OpenLoopReport:
    errors = []
    for name, part in content["parts"].items():
        interval = part[POLICY]["interval_95"]
        errors.append(
            OpenLoopError(
                str(name), str(part["unit"]), _parse_error(part[POLICY]),
                None if interval is None else (float(interval[0]), float(interval[1])),
                {key: _parse_error(part[key]) for key in BASELINES},
            )
        )  # fmt: skip
    return OpenLoopReport(
        str(content["checkpoint"]), len(content["episodes"]), bool(content["held_out"]), str(content["sampler"]),
        int(content["inference_steps"]), errors,
    )  # fmt: skip


def _parse_error(method: dict[str, Any]) -> float | None:
    return None if method["error"] is None else float(method["error"])
