"""Plots of metrics and evaluations; the only user of matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddp_cli.disk import atomic_file
from ddp_cli.errors import DdpError
from ddp_cli.evaluation.open_loop import BASELINES, EpisodeChunks
from ddp_cli.schema import ActionPart
from ddp_cli.training.metrics import read_metrics

PANELS = {
    "loss": "noise loss (training)",
    "success_rate": "success rate in the simulator",
    "position_error_mm": "sampled action error, held-out [mm]\n(not for choosing checkpoints)",
}


def plot_metrics(runs: list[Path], out: Path) -> None:
    """Write a PNG with one panel per metric that any of `runs` has recorded, and one line per run."""
    metrics = {run: read_metrics(run) for run in runs}
    empty = [str(run) for run, rows in metrics.items() if not rows]
    if empty:
        raise DdpError(f"'{empty[0]}' has no recorded metrics.", "Name run folders, runs/TASK/NAME.")
    panels = {
        key: title for key, title in PANELS.items() if any(key in row for rows in metrics.values() for row in rows)
    }
    if not panels:
        raise DdpError(f"'{runs[0]}' has recorded none of {', '.join(PANELS)}.", "Name run folders, runs/TASK/NAME.")
    figure = _make_figure(5.5 * len(panels), 4)
    for i, (key, title) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for run, rows in metrics.items():
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                label = _plain(f"{run.resolve().parent.name}/{run.resolve().name}")
                axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else "", markersize=3, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if key == "loss":
            axes.set_yscale("log")
        if key == "success_rate":
            axes.set_ylim(-0.02, 1.02)
        axes.legend(fontsize=8)
    _save(figure, out)


def plot_sweep(reports: list[dict[str, Any]], out: Path) -> None:
    """Write a PNG of success rates with their 95% intervals against the time per action chunk, a line per sampler."""
    figure = _make_figure(6.5, 4.2)
    axes = figure.add_subplot()
    for sampler in dict.fromkeys(r["sampler"] for r in reports):
        points = sorted((r for r in reports if r["sampler"] == sampler), key=lambda r: r["inference_steps"])
        times, rates = [r["chunk_ms"] for r in points], [r["success_rate"] for r in points]
        below = [max(0.0, r["success_rate"] - r["interval_95"][0]) for r in points]
        above = [max(0.0, r["interval_95"][1] - r["success_rate"]) for r in points]
        axes.errorbar(times, rates, yerr=[below, above], marker="o", markersize=4, capsize=3, label=sampler)
        for r in points:
            position = (r["chunk_ms"], r["success_rate"])
            axes.annotate(str(r["inference_steps"]), position, textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlabel("time per action chunk [ms]")
    axes.set_ylabel("success rate")
    axes.set_title(f"{_plain(reports[0]['task'])}: labels are numbers of denoising steps", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, out)


MAX_VALUES = 16  # of an action, in a picture


def plot_predictions(parts: Sequence[ActionPart], episode: EpisodeChunks, report: Mapping[str, Any], out: Path) -> None:
    """Write a PNG: recorded and predicted values of the actions of one episode, chunk after chunk as they would be
    executed, and the errors by step into the chunk.
    """
    names = [f"{part.name} {name}" for part in parts for name in part.names or range(part.width)]
    shown, rate = min(len(names), MAX_VALUES), report["rate"]
    length = episode.recorded.shape[1]
    is_executed = (episode.steps - episode.steps[0]) % length == 0
    columns = 2 if shown + len(parts) > 3 else 1
    rows = math.ceil((shown + len(parts)) / columns)
    figure = _make_figure(6.5 * columns, 2.1 * rows + 0.6)
    for i, name in enumerate(names[:shown]):
        axes = figure.add_subplot(rows, columns, i + 1)
        for start, recorded, predicted in zip(
            episode.steps[is_executed],
            episode.recorded[is_executed],
            episode.predicted["policy"][is_executed],
            strict=True,
        ):
            n = int(np.isfinite(recorded[:, i]).sum())
            times = (start + np.arange(n)) / rate
            axes.plot(times, recorded[:n, i], color="0.45", linewidth=1.6)
            axes.plot(times, predicted[:n, i], color="tab:orange", linewidth=1.1)
        axes.set_title(_plain(name), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for j, part in enumerate(parts):
        axes = figure.add_subplot(rows, columns, shown + j + 1)
        entry = report["parts"][part.name]
        for key, label in {"policy": "policy", **BASELINES}.items():
            axes.plot(range(1, length + 1), entry[key]["by_step"], marker="o", markersize=3, label=label)
        unit = _plain(entry["unit"] or "as recorded")
        axes.set_title(f"error of {part.name} by step into the chunk [{unit}]", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    more = f", first {shown} of {len(names)} values" if shown < len(names) else ""
    origin = "held out of training" if report["held_out"] else "may have been trained on"
    title = _plain(f"{report['task']}, episode {episode.name} ({origin})")
    figure.suptitle(f"{title}{more}: recorded gray, predicted orange; time in s", fontsize=10)
    _save(figure, out)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as formulas."""
    return text.replace("$", r"\$")


def _make_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, out: Path) -> None:
    with atomic_file(out) as partial:
        figure.savefig(partial, dpi=120, format="png")
