"""Loss and success curves of runs as a picture; the only user of matplotlib."""

from __future__ import annotations

from pathlib import Path

from ddp_cli.core.metrics import read_metrics
from ddp_cli.errors import DdpError

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
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
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(out)
