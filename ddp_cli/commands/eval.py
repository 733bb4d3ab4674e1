"""`ddp eval`: how often a policy succeeds."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddp_cli import console, options
from ddp_cli.errors import DdpError
from ddp_cli.tasks import FIRST_SEED

if TYPE_CHECKING:
    from ddp_cli.core.distributed import Processes
    from ddp_cli.sim.evaluation import Evaluation

EPISODES = 50
MOST_EPISODES = 2000  # where an interval decides


@dataclass(frozen=True)
class Asked:
    """What to run every checkpoint on."""

    episodes: int
    seed: int
    half_width: float
    sampler: str | None
    inference_steps: int | None
    engine: str
    workers: int | None
    device: str


def evaluate(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CHECKPOINT]...",
            help="Checkpoint or run, two of them to compare; the newest run's best by default.",
            show_default=False,
        ),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", "-n", min=1, help="How many starts; 50.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="First start; counts upward.")] = FIRST_SEED["eval"],
    until_ci: Annotated[
        float | None,
        typer.Option("--until-ci", min=0.005, max=0.5, help="Run until the 95% interval is so tight on each side."),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option("--last", min=2, help="The run's last K checkpoints: their mean, and the best on fresh starts."),
    ] = None,
    task: options.AnyTask = None,
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    engine: options.Engine = "auto",
    workers: options.Workers = None,
    device: options.Device = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file; eval/ in the run by default.", show_default=False)
    ] = None,
    runs: options.Runs = options.RUNS,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure the success rate over fixed starts, with its 95% interval."""
    from ddp_cli.core.checkpoint import resolve_checkpoint
    from ddp_cli.core.distributed import processes
    from ddp_cli.sim.report import write_report

    if len(checkpoints or []) > 2 or (last and len(checkpoints or []) > 1):
        raise DdpError("too many checkpoints.", "Give one, two to compare, or one run with --last.")
    count = episodes or (MOST_EPISODES if until_ci else EPISODES)
    asked = Asked(count, seed, until_ci or 0.0, sampler, inference_steps, engine, workers, device)
    with processes() as together, console.without_results(json):
        if not together.first:
            console.mute()
        if out:
            options.check_output(out, overwrite)
        if last:
            folders = _last_of(checkpoints[0] if checkpoints else None, runs, task, last)
        else:
            folders = [resolve_checkpoint(path, runs, task) for path in checkpoints or (None,)]
        reports = [_measure(folder, asked, together) for folder in folders]
        report = reports[0]
        if last:
            best = max(reports, key=lambda r: (r["success_rate"], r["step"]))
            fresh = replace(asked, seed=FIRST_SEED["report"])
            report = _summary(reports, _measure(Path(best["checkpoint"]), fresh, together))
        elif len(reports) == 2:
            report = _comparison(*reports)
        if not together.first:
            return
    if out:
        write_report(out, report)
        console.note(f"written to {out}")
    if json:
        console.print_json(report)


def _last_of(run: Path | None, runs: Path, task: str | None, count: int) -> list[Path]:
    from ddp_cli.core.checkpoint import checkpoints, latest_run

    folder = run or latest_run(runs, task)
    found = checkpoints(folder)[-count:]
    if not found:
        raise DdpError(f"no checkpoints in '{folder}'.", "--last takes the folder of a run, runs/TASK/NAME.")
    return found


def _measure(folder: Path, asked: Asked, together: Processes) -> dict[str, Any]:
    """Runs the episodes of one checkpoint, shows them, and returns the report, also written into its run."""
    from ddp_cli.config import PolicyConfig
    from ddp_cli.core.agent import choose_engine, load_agent
    from ddp_cli.core.checkpoint import load_meta
    from ddp_cli.core.run import choose_device
    from ddp_cli.parallel import default_workers
    from ddp_cli.sim.evaluation import Evaluation
    from ddp_cli.sim.evaluation import evaluate as run_evaluation
    from ddp_cli.sim.report import write_report

    meta = load_meta(folder)
    used = PolicyConfig(**meta["policy"]).with_sampler(asked.sampler, asked.inference_steps)  # type: ignore[arg-type]
    device = str(choose_device(together.device(asked.device)))
    engine = choose_engine(used, device.partition(":")[0], asked.engine)
    agent = functools.partial(load_agent, folder, device, used.sampler, used.num_inference_steps, engine)
    console.note(f"policy {folder}, {used.sampler} with {used.num_inference_steps} steps, engine {engine}")
    started, wins, done = time.perf_counter(), 0, 0
    starts = range(asked.seed, asked.seed + asked.episodes)[together.share(asked.episodes)]
    with console.progress(f"eval {used.task.name}") as update:

        def progress(success: bool) -> None:
            nonlocal wins, done
            wins, done = wins + success, done + 1
            update(done, len(starts), f"{wins} succeeded")

        count = min(len(starts), asked.workers or max(1, default_workers() // together.local_count))
        render = str(meta["render"])
        mine = run_evaluation(agent, used.task, render, starts, count, lambda r: progress(r.success), asked.half_width)
    parts = together.gather(mine)
    result = Evaluation([e for part in parts for e in part.episodes], [seed for part in parts for seed in part.lost])
    report = {
        "checkpoint": str(folder), "task": used.task.name, "obs": used.obs, "step": meta.get("step"),
        "sampler": used.sampler, "inference_steps": used.num_inference_steps, "engine": engine,
        "first_seed": asked.seed, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    report |= result.to_json()
    if together.first:
        _show(report, result)
        if folder.parent.name == "checkpoints":
            name = f"{folder.name}-{used.sampler}{used.num_inference_steps}-{asked.seed}x{len(result.episodes)}.json"
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


def _comparison(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    from ddp_cli.sim.statistics import paired

    def outcomes(report: dict[str, Any]) -> dict[int, bool]:
        return {e["seed"]: e["success"] for e in report["episodes"]}

    found = paired(outcomes(first), outcomes(second))
    verdict = "the difference is real" if found.p_value < 0.05 else "the difference may be chance"
    count = found.both + found.only_first + found.only_second + found.neither
    console.result(
        f"of {count} starts both succeed on {found.both}, only the first on {found.only_first}, only the second on "
        f"{found.only_second}: p = {found.p_value:.3g} (exact McNemar test), {verdict}"
    )
    table = {"both": found.both, "only_first": found.only_first, "only_second": found.only_second}
    return {"first": first, "second": second, "paired": {**table, "neither": found.neither, "p": found.p_value}}


def _summary(reports: list[dict[str, Any]], fresh: dict[str, Any]) -> dict[str, Any]:
    """Best of several is luck in part: what it does on starts that did not choose it is told beside it."""
    rates = [r["success_rate"] for r in reports]
    mean = sum(rates) / len(rates)
    low, high = fresh["interval_95"]
    console.result(
        f"mean of the last {len(rates)} checkpoints {mean:.1%}, best {max(rates):.1%} (step {fresh['step']}), which "
        f"has {fresh['success_rate']:.1%} on fresh starts (95% interval {low:.1%} to {high:.1%})"
    )
    return {"mean": mean, "best": max(rates), "fresh": fresh, "checkpoints": reports}
