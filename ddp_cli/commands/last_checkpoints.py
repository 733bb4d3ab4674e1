"""`ddp eval --last`: the last checkpoints of a run, and the best of them on fresh seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.commands.eval_table import describe_interval
from ddp_cli.commands.measurement import EvalOptions, measure
from ddp_cli.errors import DdpError
from ddp_cli.seeds import unused_seed

if TYPE_CHECKING:
    from ddp_cli.training.distributed import Processes


def evaluate_last(
    path: Path | None, runs: Path, task: str | None, count: int, eval_options: EvalOptions, processes: Processes
) -> dict[str, Any]:
    """Evaluates the last checkpoints of the run `path`, by default of the newest one.

    The best of several is partly luck, so it is evaluated again on seeds that did not select it.
    """
    from ddp_cli.checkpoint_files import checkpoint_step, list_checkpoints
    from ddp_cli.core.checkpoint_lookup import newest_run, resolve_checkpoint

    run = path or newest_run(runs, task, require_checkpoint=True)
    # That of step 0 holds the weights that --init-from took from another run.
    folders = [folder for folder in list_checkpoints(run) if checkpoint_step(folder) > 0][-count:]
    if not folders:
        raise DdpError(f"no trained checkpoints in '{run}'.", "--last expects a run folder, runs/TASK/NAME.")
    resolve_checkpoint(folders[0] if path else None, runs, task)  # refuses another task
    reports = [measure(eval_options.open(folder, processes), eval_options, processes) for folder in folders]
    measure_name = "score" if "score" in reports[0] else "success_rate"
    best = max(reports, key=lambda report: (report[measure_name], report["step"]))
    fresh_seed = unused_seed(range(eval_options.seed, eval_options.seed + eval_options.episodes))
    fresh = measure(
        eval_options.open(Path(best["checkpoint"]), processes), replace(eval_options, seed=fresh_seed), processes
    )
    means = {}
    for name, label, style, interval in (
        ("score", "score", ".3f", "score_interval_95"), ("success_rate", "success rate", ".1%", "interval_95"),
    ):  # fmt: skip
        if name not in fresh:
            continue
        means[name] = sum(report[name] for report in reports) / len(reports)
        console.result(
            f"{label}: mean of the last {len(reports)} checkpoints {means[name]:{style}}, best {best[name]:{style}} "
            f"(step {best['step']}); on fresh seeds it reaches {fresh[name]:{style}} "
            f"({describe_interval(fresh[interval], style)})"
        )
    return {"mean": means["success_rate"], "best": best["success_rate"], "fresh": fresh, "checkpoints": reports} | (
        {"mean_score": means["score"]} if "score" in means else {}
    )
