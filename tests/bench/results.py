"""Success rates of trained policies: collects the evaluations of runs, and prints the tables of docs/benchmarks.md.

    python tests/bench/results.py add RUN [RUN ...] --commands "ddp collect ... && ddp train ..." --machine "2 cores"
    python tests/bench/results.py table

The runs are seeds of one recipe. `add` expects these evaluations in each of them (ddpm is optional) and summarizes them
in `tests/data/results/TASK-OBS.json`, beside those of other seeds that the same commands trained:

    ddp eval RUN --episodes 100 --seed 300000 --sampler ddpm --inference-steps 100
    ddp eval RUN --episodes 100 --seed 300000 --sampler ddim --inference-steps 10
    ddp eval RUN --episodes 25 --last 5 --sampler ddim --inference-steps 10

Environments with scores, such as Push-T, have a table of their own, with means of scores.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddp_cli.disk import atomic_file
from ddp_cli.evaluation.statistics import mean_interval, wilson_interval
from ddp_cli.seeds import FIRST_SEED
from ddp_cli.training.metrics import read_metrics

RESULTS = Path(__file__).parents[1] / "data" / "results"
FINAL_EPISODES = 100  # of the last checkpoint
N_LAST, LAST_EPISODES = 5, 25  # checkpoints at the end of the run, and episodes of each
REPORT_KEYS = ("success_rate", "interval_95", "successes", "held_rate", "mean_steps", "chunk_ms", "engine")


def add(runs: Sequence[Path], commands: str, machine: str) -> Path:
    """Summarize the evaluations of `runs`; SystemExit names a missing one. Other seeds of the same commands stay in the
    file, a result of other commands is replaced.
    """
    config = json.loads((runs[0] / "config.json").read_text())
    train = config["train"]
    task = train["policy"]["task"]
    name = task if isinstance(task, str) else task["name"]
    path = RESULTS / f"{name}-{train['policy']['obs']}.json"
    summaries = {run["seed"]: run for run in [*runs_of(path, commands), *map(summarize_run, runs)]}
    row = {
        "task": name,
        "obs": train["policy"]["obs"],
        "actions": train["policy"]["actions"],
        "preset": train["preset"],
        "demos": config["store"]["demos"],
        "batch_size": train["batch_size"],
        "machine": machine,
        "date": dt.date.today().isoformat(),
        "commands": commands,
        "runs": [summaries[seed] for seed in sorted(summaries)],
    }
    RESULTS.mkdir(exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(row, indent=1) + "\n")
    return path


def runs_of(path: Path, commands: str) -> list[dict[str, Any]]:
    """The runs in the result `path`, if they were trained by `commands`."""
    row = json.loads(path.read_text()) if path.exists() else {}
    return row["runs"] if row.get("commands") == commands else []


def summarize_run(run: Path) -> dict[str, Any]:
    """Seed, length and evaluations of one run."""
    config = json.loads((run / "config.json").read_text())
    step = f"{config['total_steps']:08d}"
    final = {
        sampler: find_reports(run, step, sampler, FIRST_SEED["report"], FINAL_EPISODES, n_required)
        for sampler, n_required in (("ddpm100", 0), ("ddim10", 1))
    }
    last = find_reports(run, "*", "ddim10", FIRST_SEED["eval"], LAST_EPISODES, N_LAST)[-N_LAST:]
    return {
        "seed": config["train"]["seed"],
        "steps": config["total_steps"],
        "minutes": round(training_seconds(run) / 60, 1),
        "final": {sampler: summarize(reports[-1]) for sampler, reports in final.items() if reports},
        "last": [mean_result(summarize(report)) for report in last],
    }


def find_reports(
    run: Path, step: str, sampler: str, first_seed: int, episodes: int, n_required: int
) -> list[dict[str, Any]]:
    """Reports of the checkpoints `step` (* for any), oldest first; SystemExit if there are fewer than `n_required`,
    or reports of several environments.
    """
    pattern = f"step-{step}-{sampler}-onnx-{first_seed}x{episodes}*.json"  # an environment or --until-ci may follow
    reports = [json.loads(path.read_text()) for path in sorted((run / "eval").glob(pattern))]
    reports = [r for r in reports if len(r["episodes"]) == episodes and r.get("until_ci") is None]
    if len(reports) < n_required:
        raise SystemExit(
            f"found {len(reports)} of {n_required} reports {run}/eval/{pattern}: evaluate first (see --help)"
        )
    if len({json.dumps(report.get("env")) for report in reports}) > 1:
        raise SystemExit(f"the reports {run}/eval/{pattern} are of several environments: remove those of all but one")
    return reports


def summarize(report: dict[str, Any]) -> dict[str, Any]:
    """The part of an evaluation report that is stored."""
    failures = [episode["seed"] for episode in report["episodes"] if not episode["success"]]
    scores = {"scores": [round(e["score"], 4) for e in report["episodes"]]} if "score" in report else {}
    return {key: report[key] for key in REPORT_KEYS} | {"failures": failures} | scores


def mean_result(summary: dict[str, Any]) -> float:
    """Mean score, or where only success counts, the number of successes."""
    return round(statistics.mean(summary["scores"]), 3) if "scores" in summary else summary["successes"]


def training_seconds(run: Path) -> float:
    """Total over all sessions of the run: the clock of its metrics restarts when it is resumed."""
    seconds = [row["seconds"] for row in read_metrics(run) if "seconds" in row]
    session_ends = [now for now, following in zip(seconds, [*seconds[1:], 0.0], strict=True) if following < now]
    return sum(session_ends)


def tables() -> list[str]:
    """Markdown: the tables of success rates and of scores, each a row per recipe and then the commands."""
    rows = sorted((json.loads(p.read_text()) for p in RESULTS.glob("*.json")), key=lambda r: (r["obs"], r["task"]))
    parts = ([row for row in rows if _has_scores(row) == scored] for scored in (False, True))
    return [table(part) for part in parts if part]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of success rates, or of scores."""
    header = ("task", "observations", "demonstrations", "training", "DDPM, 100 steps", "DDIM, 10 steps",
              "last 5 checkpoints", "time per action chunk")  # fmt: skip
    lines = [_line(header), _line(["---"] * len(header))]
    for row in rows:
        runs = row["runs"]
        last = [result for run in runs for result in run["last"]]
        times = [statistics.median(run["final"][k]["chunk_ms"] for run in runs) for k in runs[0]["final"]]
        minutes, steps = (statistics.median(run[key] for run in runs) for key in ("minutes", "steps"))
        cells = (
            row["task"], row["obs"] + (", absolute actions" if row["actions"] == "absolute" else ""), row["demos"],
            f"{row['preset']}, {minutes:.0f} min, {steps:,.0f} steps of {row['batch_size']}",
            _final(runs, "ddpm100"), _final(runs, "ddim10"),
            f"{statistics.mean(last):.3f}" if _has_scores(row) else _rate(sum(last), LAST_EPISODES * len(last)),
            " / ".join(f"{time:.0f}" for time in times) + " ms",
        )  # fmt: skip
        lines.append(_line(cells))
    commands = "\n".join(row["commands"] for row in rows)
    return "\n".join(lines) + f"\n\n```\n{commands}\n```"


def _has_scores(row: dict[str, Any]) -> bool:
    return "scores" in row["runs"][0]["final"]["ddim10"]


def _final(runs: Sequence[dict[str, Any]], sampler: str) -> str:
    """Mean over the seeds with the interval of all their episodes, and the result of each."""
    if not all(sampler in run["final"] for run in runs):
        return ""
    finals = [run["final"][sampler] for run in runs]
    each = f"; seeds: {', '.join(str(mean_result(final)) for final in finals)}" if len(runs) > 1 else ""
    if "scores" in finals[0]:
        return _score([score for final in finals for score in final["scores"]]) + each
    return _rate(sum(final["successes"] for final in finals), FINAL_EPISODES * len(runs)) + each


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _rate(successes: int, episodes: int) -> str:
    low, high = wilson_interval(successes, episodes)
    return f"{successes / episodes:.1%} ({low:.1%} to {high:.1%})"


def _score(scores: Sequence[float]) -> str:
    interval = mean_interval(scores)
    assert interval is not None  # of several scores
    return f"{statistics.mean(scores):.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subcommands = parser.add_subparsers(dest="command", required=True)
    add_parser = subcommands.add_parser("add")
    add_parser.add_argument("runs", type=Path, nargs="+")
    add_parser.add_argument("--commands", required=True)
    add_parser.add_argument("--machine", required=True)
    subcommands.add_parser("table")
    args = parser.parse_args()
    print(add(args.runs, args.commands, args.machine) if args.command == "add" else "\n\n".join(tables()))


if __name__ == "__main__":
    main()
