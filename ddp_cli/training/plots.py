"""Plots of metrics and evaluations; the only user of matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddp_cli.disk import atomic_file
from ddp_cli.errors import DdpError
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
                label = f"{run.resolve().parent.name}/{run.resolve().name}"
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
    axes.set_title(f"{reports[0]['task']}: labels are numbers of denoising steps", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, out)


def _make_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, out: Path) -> None:
    with atomic_file(out) as partial:
        figure.savefig(partial, dpi=120, format="png")
