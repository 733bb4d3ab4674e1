"""The part of a page that shows training runs: their curves, success by checkpoint, and how they were configured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddp_cli.checkpoint_files import checkpoint_step
from ddp_cli.errors import ConfigError
from ddp_cli.evaluation.report import recorded_checkpoint
from ddp_cli.evaluation.statistics import wilson_interval
from ddp_cli.presets import PRESETS, train_config
from ddp_cli.report.page import Section
from ddp_cli.report.videos import Videos, choose_evenly
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.metrics import read_metrics
from ddp_cli.training.run_config import parse_run_config

MAX_POINTS = 2000  # of a curve; of longer ones every k-th is shown
MAX_FILMS = 4  # of a run; others stay in its folder
FILM = re.compile(r"step-(\d+)\.mp4")
METRICS = {
    "loss": ("noise loss", "", True),
    "action_loss": ("auxiliary loss of the action", "", True),
    "object_loss": ("auxiliary loss of the object", "", True),
    "val_loss": ("held-out loss, not for choosing checkpoints", "", True),
    "position_error_mm": ("held-out error of the position, not for choosing checkpoints", "mm", False),
    "rotation_error_deg": ("held-out error of the rotation, not for choosing checkpoints", "degrees", False),
    "lr": ("learning rate", "", False),
    "samples_per_s": ("samples/s", "1/s", False),
    "seconds": ("wall-clock time", "min", False),
}
"""Metric -> title, unit, and whether its axis is logarithmic; in the order of the page."""


def runs_section(runs: Sequence[Path], videos: Videos) -> Section:
    """What a page shows of `runs`; CheckpointError if one of them is damaged."""
    names = [f"{run.resolve().parent.name}/{run.resolve().name}" for run in runs]
    described = [_describe(run, name, videos) for run, name in zip(runs, names, strict=True)]
    recorded = {metric for run in described for metric in run["metrics"]}
    return {
        "kind": "runs",
        "title": ", ".join(names),
        "runs": described,
        "metrics": [
            {"key": key, "title": title, "unit": unit, "log": log}
            for key, (title, unit, log) in METRICS.items()
            if key in recorded
        ],
    }


def _describe(run: Path, name: str, videos: Videos) -> dict[str, Any]:
    recorded = parse_run_config(run)
    config, store = recorded.train, recorded.identity
    rows = read_metrics(run)
    last = max((int(row["step"]) for row in rows), default=0)
    seconds = max((row.get("seconds", 0.0) for row in rows), default=0.0)
    facts = [
        ("command", recorded.command or "not recorded"),
        ("task", f"{config.policy.task.name}, from {config.policy.obs} observations"),
        ("store", f"{recorded.store}, {store.get('demos')} demonstrations, {store.get('steps')} steps"),
        ("progress", f"step {last} of {recorded.total_steps}"),
        ("wall-clock time", f"{seconds / 60:.1f} min"),
    ]
    return {
        "name": name,
        "facts": facts,
        "settings": differences_from_preset(config),
        "preset": config.preset,
        "metrics": {key: points for key in METRICS if (points := _points(rows, key))},
        **run_evaluations(run),
        "rate": config.policy.task.schema.rate,
        "films": _films(run, videos),
    }


def _films(run: Path, videos: Videos) -> dict[int, str]:
    """Training step -> id of the film of an episode, of the films of `ddp train --eval-every`, evenly chosen."""
    matches = [(FILM.fullmatch(path.name), path) for path in (run / "videos").glob("step-*.mp4")]
    films = sorted((int(match[1]), path) for match, path in matches if match)
    return {step: videos.add_file(path) for step, path in choose_evenly(films, MAX_FILMS)}


def _points(rows: Sequence[Mapping[str, float]], key: str) -> list[list[float]]:
    """Steps and values of a metric; of several at a step the last one, which is that after an evaluation."""
    scale = 1 / 60 if key == "seconds" else 1.0
    by_step = {row["step"]: row[key] * scale for row in rows if key in row}
    points = [[step, value] for step, value in sorted(by_step.items())]
    stride = -(-len(points) // MAX_POINTS)
    return points[:: max(1, stride)]


def differences_from_preset(config: TrainConfig) -> list[list[str]]:
    """Rows of setting, its value in the preset, and that of the run, of the settings that differ."""
    if config.preset not in PRESETS:
        return []
    policy = config.policy
    try:
        preset = train_config(policy.task, policy.obs, config.preset)
    except ConfigError:  # the preset itself may not fit the task, such as its crop
        return []
    before, now = _flat(preset), _flat(config)
    return [[key, _text(before.get(key)), _text(now[key])] for key in now if before.get(key) != now[key]]


def _flat(config: TrainConfig) -> dict[str, Any]:
    values = dict(config) | dict(config.policy)  # model_dump would leave out some defaults
    return {key: value for key, value in values.items() if key not in {"policy", "task", "cache_dir"}}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run_evaluations(run: Path) -> dict[str, Any]:
    """Success rates with 95% intervals, and errors on recorded episodes, of the checkpoints of a run."""
    success, errors = [], []
    for path in sorted((run / "eval").glob("*.json")):
        try:
            report = json.loads(path.read_text())
            step = checkpoint_step(Path(recorded_checkpoint(report)))
            if "parts" in report:
                errors.append({"step": step, "episodes": _describe_episodes(report), "parts": _part_errors(report)})
            else:
                success.append(_success(report, step, path.name))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
            continue  # a file of something else, or without episodes
    return {
        "success": sorted(success, key=lambda point: (point["step"], point["source"])),
        "errors": sorted(errors, key=lambda point: point["step"]),
    }


def _success(report: Mapping[str, Any], step: int, source: str) -> dict[str, Any]:
    count, successes = len(report["episodes"]), sum(bool(e["success"]) for e in report["episodes"])
    low, high = wilson_interval(successes, count)
    during_training = source.endswith("-training.json")
    sampler = f", {report['sampler']}, {report['inference_steps']} steps" if report.get("sampler") else ""
    return {
        "step": step, "rate": successes / count, "low": low, "high": high, "successes": successes, "count": count,
        "source": source, "during_training": during_training,
        "by": "during training" if during_training else f"ddp eval{sampler}",
    }  # fmt: skip


def _describe_episodes(report: Mapping[str, Any]) -> str:
    """Number and store of the recorded episodes, and whether they are known to be held out."""
    doubt = "" if report["held_out"] else ", may have been trained on"
    return f"{len(report['episodes'])} of {Path(report['data']).name}{doubt}"


def _part_errors(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name, "unit": part["unit"] or "as recorded", "error": part["policy"]["error"],
            "interval": part["policy"]["interval_95"],
        }
        for name, part in report["parts"].items()
    ]  # fmt: skip
