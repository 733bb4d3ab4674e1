"""Curves of runs and of evaluations as pictures; the only user of matplotlib."""

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


def draw(runs: list[Path], out: Path) -> None:
    """Writes a PNG with one panel per quantity that any of `runs` has recorded, and one line per run."""
    found = {run: read_metrics(run) for run in runs}
    empty = [str(run) for run, rows in found.items() if not rows]
    if empty:
        raise DdpError(f"'{empty[0]}' has recorded nothing.", "Name folders of runs, runs/TASK/NAME.")
    panels = {key: title for key, title in PANELS.items() if any(key in row for rows in found.values() for row in rows)}
    if not panels:
        raise DdpError(
            f"'{runs[0]}' has recorded none of {', '.join(PANELS)}.", "Name folders of runs, runs/TASK/NAME."
        )
    figure = _figure(5.5 * len(panels), 4)
    for i, (key, title) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for run, rows in found.items():
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
    """Writes a PNG of success, with its 95% interval, against the time per action chunk: a line per sampler."""
    figure = _figure(6.5, 4.2)
    axes = figure.add_subplot()
    for sampler in dict.fromkeys(r["sampler"] for r in reports):
        found = sorted((r for r in reports if r["sampler"] == sampler), key=lambda r: r["inference_steps"])
        times, rates = [r["chunk_ms"] for r in found], [r["success_rate"] for r in found]
        below = [max(0.0, r["success_rate"] - r["interval_95"][0]) for r in found]
        above = [max(0.0, r["interval_95"][1] - r["success_rate"]) for r in found]
        axes.errorbar(times, rates, yerr=[below, above], marker="o", markersize=4, capsize=3, label=sampler)
        for r in found:
            at = (r["chunk_ms"], r["success_rate"])
            axes.annotate(str(r["inference_steps"]), at, textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlabel("time per action chunk [ms]")
    axes.set_ylabel("success rate")
    axes.set_title(f"{reports[0]['task']}: numbers are denoising steps", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, out)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, out: Path) -> None:
    with atomic_file(out) as partial:
        figure.savefig(partial, dpi=120, format="png")
