"""What `ddp eval` writes about a checkpoint, and what can be read from it again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ddp_cli.disk import atomic_file
from ddp_cli.errors import DataError

Value = TypeVar("Value", int, str)


@dataclass(frozen=True)
class EvalReport:
    """An evaluation of one checkpoint. What an older report does not say of sampler, steps and engine is None."""

    path: Path
    checkpoint: str
    failures: list[int]
    """Seeds of the episodes that did not succeed."""
    sampler: str | None
    inference_steps: int | None
    engine: str | None

    def place(self) -> Path:
        """Its checkpoint: as it was called, or, if the run has moved since, in the run that the report is in."""
        beside = self.path.absolute().parent.parent / "checkpoints" / Path(self.checkpoint).name
        return beside if beside.exists() and not Path(self.checkpoint).exists() else Path(self.checkpoint)

    def check_of(self, folder: Path) -> None:
        """DataError unless it is about the checkpoint `folder`."""
        if folder.resolve() != self.place().resolve():
            raise DataError(
                f"'{self.path}' is about the checkpoint '{self.checkpoint}', not '{folder}'.",
                "Name that checkpoint, or evaluate this one: `ddp eval`.",
            )


def read_report(path: Path) -> EvalReport:
    """The report in a JSON file; DataError if it is none, or one of several checkpoints."""
    hint = "Name a file that `ddp eval` wrote: --out, or eval/ in the run."
    try:
        value = json.loads(path.read_text())
        episodes = [(_typed(e["seed"], int), _typed(e["success"], bool)) for e in value["episodes"]]
        return EvalReport(
            path,
            _typed(value["checkpoint"], str),
            [seed for seed, success in episodes if not success],
            _maybe(value.get("sampler"), str),
            _maybe(value.get("inference_steps"), int),
            _maybe(value.get("engine"), str),
        )
    except FileNotFoundError:
        raise DataError(f"no file '{path}'.", hint) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"'{path}' is no report of an evaluation of one checkpoint.", hint) from None


def _typed(value: Any, kind: type[Value]) -> Value:
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise TypeError
    return value


def _maybe(value: Any, kind: type[Value]) -> Value | None:
    return None if value is None else _typed(value, kind)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Writes a JSON report in one piece."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n")
