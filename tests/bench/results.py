"""What trained policies were measured to do: from a run's evaluations to the README's table.

    python tests/bench/results.py add RUN --commands "ddp collect ... && ddp train ..." --machine "2 cores of ..."
    python tests/bench/results.py table

`add` wants these evaluations in the run, and makes `tests/data/results/TASK-OBS.json` of them:

    ddp eval RUN --episodes 100 --seed 300000 --sampler ddpm --inference-steps 100
    ddp eval RUN --episodes 100 --seed 300000 --sampler ddim --inference-steps 10
    ddp eval RUN --episodes 25 --last 5 --sampler ddim --inference-steps 10
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddp_cli.choices import FIRST_SEED
from ddp_cli.evaluation.statistics import wilson
from ddp_cli.training.metrics import read_metrics

RESULTS = Path(__file__).parents[1] / "data" / "results"
FINAL, LAST, STARTS = 100, 5, 25
KEPT = ("success_rate", "interval_95", "successes", "held_rate", "mean_steps", "chunk_ms", "engine")


def add(run: Path, commands: str, machine: str) -> Path:
    """Collects what is known about `run` and its last checkpoint; SystemExit names what is missing."""
    asked = json.loads((run / "config.json").read_text())
    train, step = asked["train"], asked["total_steps"]
    final = f"step-{step:08d}-{{}}-{FIRST_SEED['report']}x{FINAL}.json"
    row = {
        "task": train["policy"]["task"],
        "obs": train["policy"]["obs"],
        "actions": train["policy"]["actions"],
        "preset": train["preset"],
        "demos": asked["store"]["demos"],
        "steps": step,
        "batch_size": train["batch_size"],
        "minutes": round(training_seconds(run) / 60, 1),
        "machine": machine,
        "date": dt.date.today().isoformat(),
        "commands": commands,
        "final": {name: summary(run / "eval" / final.format(name)) for name in ("ddpm100", "ddim10")},
        "last": [summary(path)["successes"] for path in last_checkpoints(run)],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{row['task']}-{row['obs']}.json"
    path.write_text(json.dumps(row, indent=1) + "\n")
    return path


def last_checkpoints(run: Path) -> list[Path]:
    """The evaluations of the last checkpoints, oldest first."""
    name = f"step-*-ddim10-{FIRST_SEED['eval']}x{STARTS}.json"
    found = sorted((run / "eval").glob(name))[-LAST:]
    if len(found) < LAST:
        raise SystemExit(f"{len(found)} of {LAST} {run}/eval/{name}: run the evaluations first (see --help)")
    return found


def summary(path: Path) -> dict[str, Any]:
    """What is kept of an evaluation."""
    if not path.is_file():
        raise SystemExit(f"no {path}: run the evaluations first (see --help)")
    found = json.loads(path.read_text())
    failures = [e["seed"] for e in found["episodes"] if not e["success"]]
    return {key: found[key] for key in KEPT} | {"failures": failures}


def training_seconds(run: Path) -> float:
    """Of all sessions of the run: the clock of its records begins anew when it is resumed."""
    seconds = [row["seconds"] for row in read_metrics(run) if "seconds" in row]
    ends = [a for a, b in zip(seconds, [*seconds[1:], 0.0], strict=True) if b < a]
    return sum(ends)


def table() -> str:
    """Markdown: a line per row of results, then the commands."""
    rows = sorted((json.loads(p.read_text()) for p in RESULTS.glob("*.json")), key=lambda r: (r["obs"], r["task"]))
    lines = ["| task | observations | demos | training | DDPM-100 | DDIM-10 | last 5 checkpoints | a chunk takes |"]
    lines.append("| --- " * 8 + "|")
    for row in rows:
        full, quick, of = row["final"]["ddpm100"], row["final"]["ddim10"], STARTS * len(row["last"])
        wins = sum(row["last"])
        cells = (
            row["task"], row["obs"], row["demos"],
            f"{row['preset']}, {row['minutes']:.0f} min, {row['steps']:,} steps of {row['batch_size']}",
            _rate(full["success_rate"], full["interval_95"]), _rate(quick["success_rate"], quick["interval_95"]),
            _rate(wins / of, wilson(wins, of)), f"{full['chunk_ms']:.0f} / {quick['chunk_ms']:.0f} ms",
        )  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    commands = "\n".join(row["commands"] for row in rows)
    return "\n".join(lines) + f"\n\n```\n{commands}\n```"


def _rate(rate: float, interval: Sequence[float]) -> str:
    return f"{rate:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    adding = what.add_parser("add")
    adding.add_argument("run", type=Path)
    adding.add_argument("--commands", required=True)
    adding.add_argument("--machine", required=True)
    what.add_parser("table")
    args = parser.parse_args()
    print(add(args.run, args.commands, args.machine) if args.what == "add" else table())


if __name__ == "__main__":
    main()
