"""Success by number of demonstrations: trains policies on the first 25 to 400 of the same demonstrations, and draws it.

    python tests/bench/data_curve.py FOLDER [--tasks square can] [--actions delta absolute] [--obs state] [--steps 5000]
    python tests/bench/data_curve.py --draw

All policies of an observation are trained for the same number of steps. Takes hours; after an
interruption, the same command continues.
The results are in data_curve.json beside this file, and the figure is docs/images/demonstrations.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from chart import DDP, TEXT
from recipes import SAMPLER, make_data, run_once, train
from results import FINAL_EPISODES

from ddp_cli.disk import atomic_file
from ddp_cli.evaluation.statistics import wilson_interval
from ddp_cli.seeds import FIRST_SEED

RESULTS = Path(__file__).with_suffix(".json")
FIGURE = Path(__file__).parents[2] / "docs" / "images" / "demonstrations.png"
DEMOS = (25, 50, 100, 200, 400)
COLORS = {"square": DDP, "can": "#c26a1f"}
STYLES = {"absolute": "-", "delta": "--"}


def measure(task: str, actions: str, obs: str, demos: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train on the first `demos` of the demonstrations and evaluate: a row of the results."""
    name = f"{task}-{obs}-{actions}-{demos}"
    recording, every, store = f"{task}.hdf5", f"data/{task}-{obs}-{actions}.zarr", f"data/{name}.zarr"
    commands = (
        (f"ddp collect --task {task} -n {max(DEMOS)} -o {recording}", recording),
        (f"ddp convert {recording} --obs {obs} --actions {actions} --out {every}", every),
        (f"ddp convert {every} --only :{demos} --out {store}", store),
    )
    make_data(commands, folder)
    run = train(f"--data {store} --obs {obs} --steps {steps} --seed 1 --keep 1", task, name, folder)
    report = folder / f"{name}.json"
    run_once(
        f"ddp eval {run.relative_to(folder)} -n {FINAL_EPISODES} --seed {FIRST_SEED['report']} {SAMPLER} "
        f"--out {report.name}", folder, folder / f"{name}.evaluated", report,
    )  # fmt: skip
    successes = json.loads(report.read_text())["successes"]
    return {"task": task, "obs": obs, "actions": actions, "demos": demos, "steps": steps, "successes": successes}


def add(row: dict[str, Any]) -> None:
    """Write a row, in place of an earlier one of the same policy."""
    key = ("task", "obs", "actions", "demos")
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [other for other in rows if any(other[k] != row[k] for k in key)] + [row]
    with atomic_file(RESULTS) as partial:
        partial.write_text(json.dumps(sorted(rows, key=lambda r: [r[k] for k in key]), indent=1) + "\n")


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Success with 95% intervals over the number of demonstrations, a line per task and convention of actions."""
    plt.rcParams.update({"font.size": 12, **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color"), TEXT)})
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    lines = sorted({(row["task"], row["obs"], row["actions"]) for row in rows})
    for i, line in enumerate(lines):
        points = [row for row in rows if (row["task"], row["obs"], row["actions"]) == line]
        rates = [100 * row["successes"] / FINAL_EPISODES for row in points]
        intervals = [wilson_interval(row["successes"], FINAL_EPISODES) for row in points]
        below = [rate - 100 * low for rate, (low, _) in zip(rates, intervals, strict=True)]
        above = [100 * high - rate for rate, (_, high) in zip(rates, intervals, strict=True)]
        shift = 1.03 ** (i - (len(lines) - 1) / 2)  # so that intervals do not cover each other
        axes.errorbar(
            [row["demos"] * shift for row in points], rates, [below, above], marker="o", capsize=3,
            color=COLORS.get(line[0]), linestyle=STYLES[line[2]], label=f"{line[0]} from {line[1]}, {line[2]} actions",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="demonstrations", ylabel="success of 100 episodes [%]", ylim=(0, 102))
    axes.set_xticks(DEMOS, [str(n) for n in DEMOS])
    axes.minorticks_off()
    axes.tick_params(colors=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=120, transparent=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--tasks", nargs="+", default=["square", "can"])
    parser.add_argument("--actions", nargs="+", default=["absolute", "delta"])
    parser.add_argument("--obs", default="state")
    parser.add_argument("--demos", nargs="+", type=int, default=DEMOS)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--draw", action="store_true", help="only draw the results")
    args = parser.parse_args()
    if not args.draw:
        if args.folder is None:
            parser.error("FOLDER is missing")
        args.folder.mkdir(parents=True, exist_ok=True)
        for task in args.tasks:
            for actions in args.actions:
                for demos in args.demos:
                    add(measure(task, actions, args.obs, demos, args.steps, args.folder))
    draw(json.loads(RESULTS.read_text()), FIGURE)
    print(FIGURE)


if __name__ == "__main__":
    main()
