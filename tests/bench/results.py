"""Success rates of trained policies: collects the evaluations of a run, and prints the table of docs/benchmarks.md.

    python tests/bench/results.py add RUN --commands "ddp collect ... && ddp train ..." --machine "2 cores of ..."
    python tests/bench/results.py table

`add` expects these evaluations in the run and summarizes them in `tests/data/results/TASK-OBS.json`:

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

from ddp_cli.evaluation.statistics import wilson_interval
from ddp_cli.seeds import FIRST_SEED
from ddp_cli.training.metrics import read_metrics

RESULTS = Path(__file__).parents[1] / "data" / "results"
FINAL_EPISODES = 100  # of the last checkpoint
N_LAST, LAST_EPISODES = 5, 25  # checkpoints at the end of the run, and episodes of each
REPORT_KEYS = ("success_rate", "interval_95", "successes", "held_rate", "mean_steps", "chunk_ms", "engine")


def add(run: Path, commands: str, machine: str) -> Path:
    """Summarize the evaluations of `run`; SystemExit names a missing one."""
    config = json.loads((run / "config.json").read_text())
    train, total_steps = config["train"], config["total_steps"]
    report_name = f"step-{total_steps:08d}-{{}}-{FIRST_SEED['report']}x{FINAL_EPISODES}.json"
    row = {
        "task": train["policy"]["task"],
        "obs": train["policy"]["obs"],
        "actions": train["policy"]["actions"],
        "preset": train["preset"],
        "demos": config["store"]["demos"],
        "steps": total_steps,
        "batch_size": train["batch_size"],
        "minutes": round(training_seconds(run) / 60, 1),
        "machine": machine,
        "date": dt.date.today().isoformat(),
        "commands": commands,
        "final": {name: summarize(run / "eval" / report_name.format(name)) for name in ("ddpm100", "ddim10")},
        "last": [summarize(path)["successes"] for path in last_reports(run)],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{row['task']}-{row['obs']}.json"
    path.write_text(json.dumps(row, indent=1) + "\n")
    return path


def last_reports(run: Path) -> list[Path]:
    """The reports of the last checkpoints, oldest first."""
    pattern = f"step-*-ddim10-{FIRST_SEED['eval']}x{LAST_EPISODES}.json"
    reports = sorted((run / "eval").glob(pattern))[-N_LAST:]
    if len(reports) < N_LAST:
        raise SystemExit(f"found {len(reports)} of {N_LAST} reports {run}/eval/{pattern}: evaluate first (see --help)")
    return reports


def summarize(path: Path) -> dict[str, Any]:
    """The part of an evaluation report that is stored."""
    if not path.is_file():
        raise SystemExit(f"no report {path}: evaluate first (see --help)")
    report = json.loads(path.read_text())
    failures = [episode["seed"] for episode in report["episodes"] if not episode["success"]]
    return {key: report[key] for key in REPORT_KEYS} | {"failures": failures}


def training_seconds(run: Path) -> float:
    """Total over all sessions of the run: the clock of its metrics restarts when it is resumed."""
    seconds = [row["seconds"] for row in read_metrics(run) if "seconds" in row]
    session_ends = [now for now, following in zip(seconds, [*seconds[1:], 0.0], strict=True) if following < now]
    return sum(session_ends)


def table() -> str:
    """Markdown: a row per policy, then the commands."""
    rows = sorted((json.loads(p.read_text()) for p in RESULTS.glob("*.json")), key=lambda r: (r["obs"], r["task"]))
    header = ("task", "observations", "demonstrations", "training", "DDPM, 100 steps", "DDIM, 10 steps",
              "last 5 checkpoints", "time per action chunk")  # fmt: skip
    lines = [_line(header), _line(["---"] * len(header))]
    for row in rows:
        ddpm, ddim = row["final"]["ddpm100"], row["final"]["ddim10"]
        successes, episodes = sum(row["last"]), LAST_EPISODES * len(row["last"])
        cells = (
            row["task"], row["obs"], row["demos"],
            f"{row['preset']}, {row['minutes']:.0f} min, {row['steps']:,} steps of {row['batch_size']}",
            _rate(ddpm["success_rate"], ddpm["interval_95"]), _rate(ddim["success_rate"], ddim["interval_95"]),
            _rate(successes / episodes, wilson_interval(successes, episodes)),
            f"{ddpm['chunk_ms']:.0f} / {ddim['chunk_ms']:.0f} ms",
        )  # fmt: skip
        lines.append(_line(cells))
    commands = "\n".join(row["commands"] for row in rows)
    return "\n".join(lines) + f"\n\n```\n{commands}\n```"


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _rate(rate: float, interval: Sequence[float]) -> str:
    return f"{rate:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subcommands = parser.add_subparsers(dest="command", required=True)
    add_parser = subcommands.add_parser("add")
    add_parser.add_argument("run", type=Path)
    add_parser.add_argument("--commands", required=True)
    add_parser.add_argument("--machine", required=True)
    subcommands.add_parser("table")
    args = parser.parse_args()
    print(add(args.run, args.commands, args.machine) if args.command == "add" else table())


if __name__ == "__main__":
    main()
