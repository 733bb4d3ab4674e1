"""How one checkpoint does over the starts that were asked for: what `ddp eval` is made of."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.deploy.policy_source import PolicySource, is_exported, subject

if TYPE_CHECKING:
    from ddp_cli.evaluation.evaluation import Evaluation
    from ddp_cli.training.distributed import Processes


@dataclass(frozen=True)
class EvalOptions:
    """What to run every checkpoint on."""

    episodes: int
    seed: int
    half_width: float
    sampler: str | None
    inference_steps: int | None
    engine: str
    workers: int | None
    device: str

    def subject(self, folder: Path, together: Processes) -> PolicySource:
        """The policy in `folder`, run as asked; ConfigError or DdpError where it cannot be."""
        # An exported policy knows no devices: what this process was given is no wish of the user's.
        device = self.device if is_exported(folder) else together.device(self.device)
        return subject(folder, device, self.sampler, self.inference_steps, self.engine)


def measure(used: PolicySource, asked: EvalOptions, together: Processes, quiet: bool = False) -> dict[str, Any]:
    """Runs the episodes of one policy, shows them unless `quiet`, and returns the report, also written into
    its run.
    """
    from ddp_cli.evaluation.evaluation import Evaluation
    from ddp_cli.evaluation.evaluation import evaluate as run_evaluation
    from ddp_cli.evaluation.report import write_report
    from ddp_cli.parallel import default_workers

    folder = used.folder
    console.note(f"policy {folder}, {used.sampler} with {used.inference_steps} steps, engine {used.engine}")
    started, wins, done = time.perf_counter(), 0, 0
    starts = range(asked.seed, asked.seed + asked.episodes)[together.share(asked.episodes)]
    with console.progress(f"eval {used.task.name}") as update:

        def progress(success: bool) -> None:
            nonlocal wins, done
            wins, done = wins + success, done + 1
            update(done, len(starts), f"{wins} succeeded")

        count = min(len(starts), asked.workers or max(1, default_workers() // together.local_count))
        mine = run_evaluation(
            used.make, used.task, used.render, starts, count, lambda r: progress(r.success), asked.half_width
        )
    parts = together.gather(mine)
    result = Evaluation([e for part in parts for e in part.episodes], [seed for part in parts for seed in part.lost])
    report = {
        "checkpoint": str(folder), "task": used.task.name, "obs": used.obs, "step": used.step,
        "sampler": used.sampler, "inference_steps": used.inference_steps, "engine": used.engine,
        "first_seed": asked.seed, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    report |= result.to_json()
    if together.first:
        if not quiet:
            _show(report, result)
        if folder.parent.name == "checkpoints":
            name = f"{folder.name}-{used.sampler}{used.inference_steps}-{asked.seed}x{len(result.episodes)}.json"
            write_report(folder.parents[1] / "eval" / name, report)
    return report


def _show(report: dict[str, Any], result: Evaluation) -> None:
    low, high = result.interval
    count, seconds = len(result.episodes), report["seconds"]
    found = f"{result.successes} of {count}, 95% interval {low:.1%} to {high:.1%}"
    first = report["first_seed"]
    rows = [
        ("success", f"{result.success_rate:.1%}", found),
        ("held for 10 steps", f"{result.held_rate:.1%}", ""),
        ("steps to success", f"{result.mean_steps:.1f}", "mean of those that succeeded"),
        (
            "action chunk",
            f"{result.chunk_ms:.0f} ms",
            f"median, {report['sampler']} with {report['inference_steps']} steps, {report['engine']}",
        ),
        (
            "episodes",
            f"{3600 * count / seconds:.0f}/h",
            f"starts {first} to {first + count + len(result.lost) - 1}, in {console.duration(seconds)}",
        ),
    ]
    if result.lost:
        rows.append(("not run", str(len(result.lost)), f"the process died every time: starts {result.lost}"))
    console.table(f"{report['task']} from {report['obs']}: {report['checkpoint']}", rows)
