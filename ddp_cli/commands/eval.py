"""`ddp eval`: how often a policy succeeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddp_cli import console
from ddp_cli.choices import FIRST_SEED
from ddp_cli.commands import options
from ddp_cli.commands.measurement import EvalOptions, measure
from ddp_cli.commands.sweep import parse_sweep, sweep
from ddp_cli.deploy.policy_source import find
from ddp_cli.errors import DdpError
from ddp_cli.parallel import default_workers, prepare

if TYPE_CHECKING:
    from ddp_cli.training.distributed import Processes

EPISODES = 50
MOST_EPISODES = 2000  # where an interval decides


def evaluate(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CHECKPOINT]...",
            help="Checkpoint or run, two of them to compare; the newest run's best by default.",
            show_default=False,
        ),
    ] = None,
    policy: options.Policy = None,
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
    sweeps: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="NAME=VALUES...",
            help="Success against latency: inference-steps=1,2,4 sampler=ddim,dpm.",
            show_default=False,
        ),
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
    folders, swept = parse_sweep(checkpoints or [], sweeps)
    folders += [policy] if policy else []
    if len(folders) > (1 if last or swept else 2) or (last and swept):
        raise DdpError(
            "too many things at once.", "Give one checkpoint, two to compare, one with --sweep, or a run with --last."
        )
    count = episodes or (MOST_EPISODES if until_ci else EPISODES)
    picture = _picture(out, overwrite) if out and swept else None
    if out:
        options.check_output(out, overwrite)
    if min(count, workers or default_workers()) > 1:
        prepare("ddp_cli.inference.agent", "ddp_cli.inference.onnx_policy")
    from ddp_cli.evaluation.report import write_report
    from ddp_cli.training.distributed import processes

    asked = EvalOptions(count, seed, until_ci or 0.0, sampler, inference_steps, engine, workers, device)
    with processes() as together, console.without_results(json):
        if not together.first:
            console.mute()
        if last:
            report = _last(folders[0] if folders else None, runs, task, last, asked, together)
        else:
            found = [find(path, runs, task) for path in folders or (None,)]
            report = sweep(found[0], asked, swept, picture, together) if swept else _one_or_two(found, asked, together)
        if not together.first:
            return
    if out:
        write_report(out, report)
        console.note(f"written to {out}")
    if json:
        console.print_json(report)


def _one_or_two(folders: list[Path], asked: EvalOptions, together: Processes) -> dict[str, Any]:
    # What cannot be is said before the first one takes its time.
    subjects = [asked.subject(folder, together) for folder in folders]
    reports = [measure(used, asked, together) for used in subjects]
    return reports[0] if len(reports) == 1 else compare(*reports)


def _picture(out: Path, overwrite: bool) -> Path:
    """Where the picture of a sweep goes: beside the report."""
    picture = out.with_suffix(".png")
    if picture == out:
        raise DdpError(f"--out '{out}': the report is JSON.", "Name a .json file; the picture lies beside it.")
    options.check_output(picture, overwrite)
    return picture


def _last(
    run: Path | None, runs: Path, task: str | None, count: int, asked: EvalOptions, together: Processes
) -> dict[str, Any]:
    """The last checkpoints of a run. The best of several is luck in part: what it does on starts that did not
    choose it is told beside it.
    """
    from ddp_cli.core.checkpoint import checkpoints, latest_run

    found = checkpoints(run or latest_run(runs, task))[-count:]
    if not found:
        raise DdpError(f"no checkpoints in '{run}'.", "--last takes the folder of a run, runs/TASK/NAME.")
    reports = [measure(asked.subject(folder, together), asked, together) for folder in found]
    best = max(reports, key=lambda r: (r["success_rate"], r["step"]))
    fresh = measure(
        asked.subject(Path(best["checkpoint"]), together), replace(asked, seed=FIRST_SEED["report"]), together
    )
    mean = sum(r["success_rate"] for r in reports) / len(reports)
    low, high = fresh["interval_95"]
    console.result(
        f"mean of the last {len(reports)} checkpoints {mean:.1%}, best {best['success_rate']:.1%} (step {best['step']})"
        f", which has {fresh['success_rate']:.1%} on fresh starts (95% interval {low:.1%} to {high:.1%})"
    )
    return {"mean": mean, "best": best["success_rate"], "fresh": fresh, "checkpoints": reports}


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two reports over the same starts, with an exact paired test and the starts that end otherwise."""
    from ddp_cli.evaluation.statistics import paired

    def outcomes(report: dict[str, Any]) -> dict[int, bool]:
        return {e["seed"]: e["success"] for e in report["episodes"]}

    one, other = outcomes(first), outcomes(second)
    found = paired(one, other)
    differing = sorted(seed for seed in one.keys() & other.keys() if one[seed] != other[seed])
    verdict = "the difference is real" if found.p_value < 0.05 else "the difference may be chance"
    count = found.both + found.only_first + found.only_second + found.neither
    console.result(
        f"of {count} starts both succeed on {found.both}, only the first on {found.only_first}, only the second on "
        f"{found.only_second}: p = {found.p_value:.3g} (exact McNemar test), {verdict}"
    )
    if differing:
        console.result(f"starts that end otherwise: {', '.join(map(str, differing))}")
    table = {"both": found.both, "only_first": found.only_first, "only_second": found.only_second}
    return {
        "first": first, "second": second,
        "paired": {**table, "neither": found.neither, "p": found.p_value, "differing": differing},
    }  # fmt: skip
