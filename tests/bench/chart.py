"""Draws the benchmark chart of the README: `python tests/bench/chart.py [--out docs/images/benchmarks.png]`.

The figures are in chart.json beside this file, written as in docs/benchmarks.md, which describes how each was measured
(tests/test_docs.py compares the two). A bar is the speedup over the baseline, whose bar has length 1.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

FIGURES = Path(__file__).with_suffix(".json")
CHART = Path(__file__).parents[2] / "docs" / "images" / "benchmarks.png"

# The background is transparent: these colours have the same contrast on white and on a dark page (4.3 to 1).
TEXT, BASELINE, DDP = "#797979", "#a9a9a9", "#1f8fbf"


@dataclass(frozen=True)
class Figure:
    """One benchmark. `baseline` and `ddp` are numbers as they are printed, with separators."""

    name: str
    detail: str
    unit: str
    lower_is_better: bool
    baseline: str
    ddp: str
    script: str
    """The file in tests/bench that measures it."""

    @property
    def speedup(self) -> float:
        baseline, ddp = (float(number.replace(",", "")) for number in (self.baseline, self.ddp))
        return baseline / ddp if self.lower_is_better else ddp / baseline


def read_figures() -> list[Figure]:
    return [Figure(**row) for row in json.loads(FIGURES.read_text())]


def draw(figures: list[Figure], out: Path) -> None:
    plt.rcParams.update({"font.size": 13, "text.color": TEXT, "ytick.color": TEXT})
    figure, axes = plt.subplots(figsize=(9.6, 4.0), layout="constrained")
    longest = max(f.speedup for f in figures)
    for row, f in enumerate(figures):
        axes.barh(row - 0.19, f.speedup, 0.36, color=DDP)
        axes.barh(row + 0.19, 1.0, 0.36, color=BASELINE)
        gap = longest * 0.012
        labels = (
            axes.text(f.speedup + gap, row - 0.19, f"{f.speedup:.1f}x   {f.ddp} {f.unit}", va="center", weight="bold"),
            axes.text(1.0 + gap, row + 0.19, f"1x   {f.baseline} {f.unit}", va="center", size=11),
        )
        for label in labels:
            label.set_in_layout(False)  # it lies inside the axes, which would be shrunk for it
    axes.set_yticks(range(len(figures)), [f"{f.name}\n{f.detail}" for f in figures])
    axes.set_xlim(0, longest * 1.75)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    bars = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (DDP, BASELINE)]
    names = ["ddp", "plain PyTorch and diffusers code; for images to zarr, JPEG 2000 per frame"]
    figure.legend(bars, names, loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=125, transparent=True, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CHART)
    draw(read_figures(), parser.parse_args().out)


if __name__ == "__main__":
    main()
