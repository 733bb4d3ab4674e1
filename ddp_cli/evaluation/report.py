"""Evaluation reports, as `ddp eval` writes them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ddp_cli.checkpoint_files import LINKS, checkpoint_path
from ddp_cli.disk import atomic_file
from ddp_cli.errors import DataError
from ddp_cli.locks import lock_output

Value = TypeVar("Value", int, str)
REPORT_HINT = "Name a file that `ddp eval` wrote: --out, or eval/ in the run."


@dataclass(frozen=True)
class EvalReport:
    """An evaluation of one checkpoint. Sampler, steps and engine are None in older reports, which lack them."""

    path: Path
    checkpoint: str
    failures: list[int]
    """Seeds of the episodes without success."""
    sampler: str | None
    inference_steps: int | None
    engine: str | None
    device: str | None = None
    """The kind of device; None in older reports."""
    env: dict[str, Any] | None = None
    """The Gymnasium environment, None for the simulator of the task."""
    seeds: list[int] = field(default_factory=list)
    """Seeds of all episodes."""
    is_approximate: bool = False
    """Whether the interval is: when the evaluation stopped depends on its results."""
    score: tuple[float, tuple[float, float] | None] | None = None
    """Mean score and its 95% interval, where the environment has scores and there are several episodes."""

    @property
    def successes(self) -> int:
        """Number of successful episodes."""
        return len(self.seeds) - len(self.failures)

    @property
    def rerun_device(self) -> str:
        """The device to run the episodes on again: the CPU if they ran on it, otherwise auto."""
        return "cpu" if self.device == "cpu" or self.engine == "onnx" else "auto"

    def checkpoint_path(self) -> Path:
        """The evaluated checkpoint; if its recorded path is gone, the one of that name in the run of this report."""
        return evaluated_checkpoint(self.path, self.checkpoint)

    def check_checkpoint(self, folder: Path) -> None:
        """DataError unless the report evaluates the checkpoint `folder`."""
        if folder.resolve() != self.checkpoint_path().resolve():
            raise DataError(
                f"'{self.path}' evaluates the checkpoint '{self.checkpoint}', not '{folder}'.",
                "Name that checkpoint, or evaluate this one with `ddp eval`.",
            )


def report_folder(checkpoint: Path) -> Path | None:
    """The folder for reports on `checkpoint`, eval/ of its run; None for a checkpoint outside of a run."""
    return checkpoint.parents[1] / "eval" if checkpoint.parent.name == "checkpoints" else None


def evaluated_checkpoint(report: Path, recorded: str) -> Path:
    """The checkpoint that the file `report` evaluates and names `recorded`; if that path is gone, the one of that name
    in the run of the report.
    """
    in_same_run = report.absolute().parent.parent / "checkpoints" / Path(recorded).name
    return in_same_run if in_same_run.exists() and not Path(recorded).exists() else Path(recorded)


def recorded_checkpoint(report: Mapping[str, Any]) -> str:
    """The checkpoint that `report` names. Earlier versions named the links `last` and `best` of a run, which move: then
    it is the one of the step in the report. In a copy of a run they may be folders.
    """
    recorded, step = _typed(report["checkpoint"], str), report.get("step")
    folder = Path(recorded)
    is_link = (
        folder.name in LINKS and folder.parent.name == "checkpoints" and (folder.is_symlink() or not folder.is_dir())
    )
    return str(checkpoint_path(folder.parents[1], step)) if is_link and type(step) is int else recorded


def read_report(path: Path) -> EvalReport:
    """Read a JSON report; DataError if the file is missing or not an evaluation of a single checkpoint."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"no file '{path}'.", REPORT_HINT) from None
    except (OSError, ValueError, RecursionError):
        content = None
    return parse_report(path, content)


def parse_report(path: Path, report: Any) -> EvalReport:
    """The evaluation of a single checkpoint in the JSON file `path`; DataError if `report` is none."""
    try:
        episodes = [(_typed(e["seed"], int), _typed(e["success"], bool)) for e in report["episodes"]]
        return EvalReport(
            path,
            recorded_checkpoint(report),
            [seed for seed, success in episodes if not success],
            _optional(report.get("sampler"), str),
            _optional(report.get("inference_steps"), int),
            _optional(report.get("engine"), str),
            _optional(report.get("device"), str),
            None if report.get("env") is None else {"id": _typed(report["env"]["id"], str)} | report["env"],
            [seed for seed, _ in episodes],
            bool(report.get("interval_is_approximate")),
            _score(report),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise DataError(f"'{path}' is not an evaluation report of one checkpoint.", REPORT_HINT) from None


def _score(report: dict[str, Any]) -> tuple[float, tuple[float, float] | None] | None:
    if report.get("score") is None:
        return None
    interval = report.get("score_interval_95")
    return float(report["score"]), None if interval is None else (float(interval[0]), float(interval[1]))


def _typed(value: Any, expected_type: type[Value]) -> Value:
    """`value` if it has exactly the expected type (numbers: and is not negative), otherwise TypeError."""
    if type(value) is not expected_type or (isinstance(value, int) and value < 0):
        raise TypeError
    return value


def _optional(value: Any, expected_type: type[Value]) -> Value | None:
    return None if value is None else _typed(value, expected_type)


def engine_name(engine: str, device: str) -> str:
    """The part of a report's name that says what computed the actions: a GPU rounds in another way than a CPU."""
    return engine if device == "cpu" else f"{engine}-{device}"


def report_name(report: dict[str, Any]) -> str:
    """File name of a report in its run: an evaluation with other options never replaces it."""
    seeds = f"{report['first_seed']}x{len(report['episodes']) + len(report['lost'])}"
    stopping_rule = f"-until-ci-{report['until_ci']:g}" if report["until_ci"] else ""
    sampler = f"{report['sampler']}{report['inference_steps']}"
    env = ""
    if "env" in report:
        settings = hashlib.sha256(json.dumps(report["env"], sort_keys=True, default=str).encode()).hexdigest()
        env = f"-{re.sub(r'[^A-Za-z0-9_.-]+', '_', report['env']['id'])}-{settings[:8]}"
    engine = engine_name(report["engine"], report["device"])
    return f"{Path(report['checkpoint']).name}-{sampler}-{engine}-{seeds}{stopping_rule}{env}.json"


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a JSON report atomically; waits for another process that writes the same one."""
    with lock_output(path, wait=lambda _: None), atomic_file(path) as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n")
