"""`ddp rollout`: episodes, recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import console
from ddp_cli.choices import FIRST_SEED
from ddp_cli.commands import options
from ddp_cli.deploy.policy_source import find, subject
from ddp_cli.errors import DdpError

if TYPE_CHECKING:
    from ddp_cli.evaluation.grid import Grid
    from ddp_cli.evaluation.rollout import Agent, EpisodeResult
    from ddp_cli.sim.simulator import Simulator


def rollout(
    checkpoint: options.Checkpoint = None,
    policy: options.Policy = None,
    video: Annotated[
        Path | None,
        typer.Option("--video", help="Write a video of the cameras: .mp4, .mov, .mkv or .gif.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, help="Which start; the same as in `ddp eval`.", show_default=str(FIRST_SEED["eval"])
        ),
    ] = None,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Try the next starts until one succeeds.")] = 1,
    grid: Annotated[
        str | None,
        typer.Option("--grid", help="Rows x columns of starts in one video, like 3x3.", show_default=False),
    ] = None,
    failures: Annotated[
        Path | None,
        typer.Option(
            "--failures",
            help="A report of `ddp eval`: film the starts that failed, in one video each (NAME-SEED.mp4) or in a grid.",
            show_default=False,
        ),
    ] = None,
    task: options.AnyTask = None,
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    engine: options.Engine = "auto",
    device: options.Device = "auto",
    runs: options.Runs = options.RUNS,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Run a policy in the simulator and say how it went."""
    from ddp_cli.evaluation.grid import parse_grid
    from ddp_cli.evaluation.report import read_report
    from ddp_cli.video.video import check_format

    _check_together(video, seed, attempts, grid, failures)
    if video:
        check_format(video)
    tiles = parse_grid(grid) if grid else None
    report = read_report(failures) if failures else None
    checkpoint = options.one_of(checkpoint, policy)
    folder = find(report.place() if report and not (checkpoint or task) else checkpoint, runs, task)
    if report:
        report.check_of(folder)
        if report.engine != "exported":
            sampler, inference_steps = sampler or report.sampler, inference_steps or report.inference_steps
            if engine == "auto":
                engine = report.engine or engine
                device = "cpu" if (engine, device) == ("onnx", "auto") else device  # where it was measured
    first, count = FIRST_SEED["eval"] if seed is None else seed, tiles.tiles if tiles else attempts
    seeds = report.failures if report else list(range(first, first + count))
    if tiles and len(seeds) > tiles.tiles:
        console.note(f"the first {tiles.tiles} of {len(seeds)} failures; a larger --grid shows more")
        seeds = seeds[: tiles.tiles]
    # One video for all, but of failures without a grid each has its own.
    places = {s: video.with_stem(f"{video.stem}-{s}") if video and report and not tiles else video for s in seeds}
    videos = [place for place in dict.fromkeys(places.values()) if place]
    for place in videos:
        options.check_output(place, overwrite)
    results: list[EpisodeResult] = []
    if places:
        with _robot(folder, device, sampler, inference_steps, engine) as (sim, agent):
            results = _play(sim, agent, places, tiles, until_success=report is None)
    if not json:
        _say(results, videos, failures)
        return
    console.print_json(
        {
            "checkpoint": str(folder),
            "video": str(videos[0]) if len(videos) == 1 else None,
            "videos": [str(place) for place in videos],
            "episodes": [asdict(r) for r in results],
        }
    )


def _check_together(
    video: Path | None, seed: int | None, attempts: int, grid: str | None, failures: Path | None
) -> None:
    for name, given in (("--grid", grid), ("--failures", failures)):
        if given is None:
            continue
        if video is None:
            raise DdpError(f"{name} needs a video.", "Add --video out.mp4.")
        if attempts > 1:
            raise DdpError(f"{name} does not go with --attempts.", "Leave one of them out.")
    if failures is not None and seed is not None:
        raise DdpError("--failures says which starts: it does not go with --seed.", "Leave one of them out.")


@contextmanager
def _robot(
    folder: Path, device: str, sampler: str | None, inference_steps: int | None, engine: str
) -> Iterator[tuple[Simulator, Agent]]:
    from ddp_cli.sim.simulator import Simulator

    used = subject(folder, device, sampler, inference_steps, engine)
    agent = used.make()
    sim = Simulator(used.task, used.render, used.actions)
    console.note(f"policy {folder}, engine {used.engine}")
    with closing(sim):
        yield sim, agent


def _play(
    sim: Simulator, agent: Agent, places: dict[int, Path | None], tiles: Grid | None, until_success: bool
) -> list[EpisodeResult]:
    """Runs the start of each seed in `places`, into the video that it names."""
    from ddp_cli.evaluation.filming import record
    from ddp_cli.evaluation.grid import record_grid
    from ddp_cli.evaluation.rollout import run_episode

    results: list[EpisodeResult] = []
    with console.progress(f"rollout {sim.task.name}") as update:

        def done(result: EpisodeResult) -> None:
            results.append(result)
            update(len(results), len(places), f"{sum(r.success for r in results)} succeeded")

        video = next(iter(places.values()))
        if tiles and video:
            record_grid(sim, agent, list(places), tiles, video, done)
            return results
        for seed, place in places.items():
            done(record(sim, agent, seed, place) if place else run_episode(sim, agent, seed))
            if until_success and results[-1].success:
                break
    return results


def _say(results: list[EpisodeResult], videos: list[Path], failures: Path | None) -> None:
    if failures and not results:
        console.result(f"no failures in '{failures}': nothing to film")
    for r in results:
        outcome = "success" if r.success else "no success"
        console.result(f"start {r.seed}: {outcome} after {r.steps} steps, {r.chunk_ms:.0f} ms per action chunk")
    if len(results) > 1:
        console.result(f"{sum(r.success for r in results)} of {len(results)} starts succeeded")
    for video in videos:
        console.result(f"video: {video}")
