"""Metrics of a run, recorded as JSON lines, in TensorBoard and optionally in Weights & Biases."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ddp_cli.disk import atomic_file
from ddp_cli.errors import DdpError
from ddp_cli.json_file import read_json

METRICS_FILE = "metrics.jsonl"
VALIDATION_METRICS = ("val_loss", "position_error_mm", "rotation_error_deg")


class Metrics:
    """Records the metrics of the run in `folder` from `step` on.

    Metrics of later steps are removed: the run was interrupted after its last checkpoint and records them again.
    `seconds` is the time for which the run has been trained; it goes on from the last recorded value.
    """

    def __init__(self, folder: Path, step: int, wandb: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / METRICS_FILE
        rows = [row for row in read_metrics(folder) if row["step"] <= step]
        lines = [json.dumps(row) for row in rows]
        self._started = time.monotonic() - max((row.get("seconds", 0.0) for row in rows), default=0.0)
        with atomic_file(self.path) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines))
        self._wandb = _start_wandb(folder) if wandb else None
        self._file = self.path.open("a")
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def success_rates(self) -> dict[int, float]:
        """Success rates measured so far, by step."""
        return {
            int(row["step"]): row["success_rate"] for row in read_metrics(self.path.parent) if "success_rate" in row
        }

    def log(self, metrics: dict[str, float]) -> None:
        """Record `metrics`, one of which is the `step`; values that are not finite are left out."""
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        step = int(metrics["step"])
        self._file.write(json.dumps({**metrics, "seconds": round(time.monotonic() - self._started, 3)}) + "\n")
        self._file.flush()
        tagged = {_tag(name): value for name, value in metrics.items() if name != "step"}
        for tag, value in tagged.items():
            self._writer.add_scalar(tag, value, step)
        if self._wandb:
            self._wandb.log(tagged, step=step)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
        self._writer.close()
        if self._wandb:
            self._wandb.finish(exit_code=int(kind is not None))


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The recorded metrics of a run, one dictionary per line; damaged lines are left out."""
    path = folder / METRICS_FILE
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int) and _is_numeric(row)]


def _is_numeric(row: dict[str, Any]) -> bool:
    return all(isinstance(value, int | float) for value in row.values())


def _tag(name: str) -> str:
    if name in VALIDATION_METRICS:
        return f"held-out, not for choosing checkpoints/{name}"
    return f"loss/{name}" if name.endswith("loss") else name


def check_wandb() -> None:
    """DdpError if Weights & Biases is not installed."""
    try:
        import wandb  # noqa: F401
    except ImportError as e:
        raise DdpError("Weights & Biases is not installed.", "Install it: pip install wandb") from e


def _start_wandb(folder: Path) -> Any:
    import wandb

    content = read_json(folder / "config.json")
    name = f"{folder.parent.name}/{folder.name}"
    try:
        return wandb.init(
            project="ddp", name=name, id=content.get("id"), resume="allow", dir=str(folder), config=content["train"]
        )
    except Exception as e:  # wandb's own errors, and those of the network
        cause = (str(e).splitlines() or [type(e).__name__])[0]
        raise DdpError(
            f"cannot start a Weights & Biases run: {cause}", "Log in with `wandb login`, or leave --wandb out."
        ) from e
