"""`ddp rollout`: episodes of a policy, recorded on video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import console
from ddp_cli.choices import Engine, Sampler
from ddp_cli.commands import env_options, options
from ddp_cli.deploy.policy_source import PolicySource, open_policy_source, resolve_policy
from ddp_cli.errors import DdpError
from ddp_cli.seeds import FIRST_SEED, MAX_SEED

if TYPE_CHECKING:
    from ddp_cli.evaluation.grid import Grid
    from ddp_cli.evaluation.report import EvalReport
    from ddp_cli.evaluation.rollout import Agent, Environment, EpisodeResult
    from ddp_cli.sim.gymnasium_env import GymnasiumSettings

EXAMPLES = options.examples(
    "ddp rollout sample_data/square-policy --seed 100002 --video out.mp4",
    "ddp rollout sample_data/square-policy --grid 2x2 --video grid.mp4",
)


def rollout(
    checkpoint: options.Checkpoint = None,
    policy: options.ExportedPolicy = None,
    task: options.RunTask = None,
    runs: options.Runs = options.RUNS,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            max=MAX_SEED,
            help="Seed of the episode, as in `ddp eval`.",
            show_default=str(FIRST_SEED["eval"]),
            rich_help_panel=options.EPISODES,
        ),
    ] = None,
    attempts: Annotated[
        int,
        typer.Option(
            "--attempts",
            min=1,
            help="Try the following seeds until an episode succeeds.",
            rich_help_panel=options.EPISODES,
        ),
    ] = 1,
    failures: Annotated[
        Path | None,
        typer.Option(
            "--failures",
            metavar="REPORT",
            help="JSON report of `ddp eval`: record its failed episodes, one video each (NAME-SEED.mp4) or as a grid.",
            show_default=False,
            rich_help_panel=options.EPISODES,
        ),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(
            "--video",
            help="Video to write: .mp4, .mov, .mkv or .gif.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="RxC",
            help="Rows x columns of episodes in one video, such as 3x3.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    env: env_options.Env = None,
    env_args: env_options.EnvArgs = None,
    sources: env_options.Map = None,
    success_key: env_options.SuccessKey = None,
    score_key: env_options.ScoreKey = None,
    max_steps: env_options.MaxSteps = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    engine: options.Engine = "auto",
    device: options.Device = "auto",
) -> None:
    """Run a policy in the simulator and record a video."""
    from ddp_cli.evaluation.grid import parse_grid
    from ddp_cli.evaluation.report import read_report
    from ddp_cli.video.video import check_format

    environment = env_options.gymnasium_settings(env, env_args, sources, success_key, score_key, max_steps)
    _check_compatible(video, seed, attempts, grid, failures)
    if video:
        check_format(video)
    layout = parse_grid(grid) if grid else None
    report = read_report(failures) if failures else None
    path = options.one_policy(checkpoint, policy)
    folder = resolve_policy(report.checkpoint_path() if report and not (path or task) else path, runs, task)
    if report:
        report.check_checkpoint(folder)
        environment = _environment_of(report, environment)
        sampler, inference_steps, engine, device = _as_evaluated(report, sampler, inference_steps, engine, device)
    first, count = FIRST_SEED["eval"] if seed is None else seed, layout.tiles if layout else attempts
    seeds = report.failures if report else list(range(first, first + count))
    if layout and len(seeds) > layout.tiles:
        console.note(f"recording the first {layout.tiles} of {len(seeds)} failures; a larger --grid shows more")
        seeds = seeds[: layout.tiles]
    # One video for all episodes; failures without a grid get one each.
    one_each = video and report and not layout
    outputs = {s: video.with_stem(f"{video.stem}-{s}") if video and one_each else video for s in seeds}
    videos = [path for path in dict.fromkeys(outputs.values()) if path]
    results: list[EpisodeResult] = []
    if outputs:
        with ExitStack() as reserved:
            for path in videos:
                reserved.enter_context(options.reserve_output(path, overwrite))
            source = open_policy_source(folder, device, sampler, inference_steps, engine)
            simulation, agent = reserved.enter_context(_simulation(source, environment, film=video is not None))
            results = _run_episodes(simulation, agent, outputs, layout, until_success=report is None)
    if not json:
        _print_results(results, videos, failures)
        return
    console.print_json(
        {
            "checkpoint": str(folder),
            "video": str(videos[0]) if len(videos) == 1 else None,
            "videos": [str(path) for path in videos],
            "episodes": [result.to_json() for result in results],
        }
    )


def _check_compatible(
    video: Path | None, seed: int | None, attempts: int, grid: str | None, failures: Path | None
) -> None:
    for name, value in (("--grid", grid), ("--failures", failures)):
        if value is None:
            continue
        if video is None:
            raise DdpError(f"{name} needs a video.", "Add --video out.mp4.")
        if attempts > 1:
            raise DdpError(f"{name} does not go with --attempts.", "Leave one of them out.")
    if failures is not None and seed is not None:
        raise DdpError("--failures selects the seeds, so it does not go with --seed.", "Leave one of them out.")


def _environment_of(report: EvalReport, given: GymnasiumSettings | None) -> GymnasiumSettings | None:
    """The environment of the evaluation; DdpError if another one was given."""
    from ddp_cli.sim.gymnasium_env import GymnasiumSettings

    evaluated = GymnasiumSettings.from_json(report.env) if report.env else None
    if given not in (None, evaluated):
        what = f"in '{evaluated.id}' with other options" if evaluated else "in the simulator of the task"
        raise DdpError(f"'{report.path}' was evaluated {what}.", "Leave out --env: the report says which it was.")
    return evaluated


def _as_evaluated(
    report: EvalReport, sampler: Sampler | None, inference_steps: int | None, engine: Engine, device: str
) -> tuple[Sampler | None, int | None, Engine, str]:
    """Sampler, denoising steps, engine and device of the evaluation, where no option overrides them. Another sampler
    takes the checkpoint's number of steps.
    """
    if report.engine == "exported":
        return sampler, inference_steps, engine, device
    if sampler in (None, report.sampler):
        sampler = report.sampler  # type: ignore[assignment]
        inference_steps = inference_steps or report.inference_steps
    if engine == "auto":
        engine = report.engine or engine  # type: ignore[assignment]
    return sampler, inference_steps, engine, report.rerun_device if device == "auto" else device


@contextmanager
def _simulation(
    source: PolicySource, environment: GymnasiumSettings | None, film: bool
) -> Iterator[tuple[Environment, Agent]]:
    """The agent of a policy, and its simulator or `environment`."""
    from ddp_cli.sim.gymnasium_env import GymnasiumEnv
    from ddp_cli.sim.simulator import Simulator

    agent = source.make_agent()
    env: Environment
    if environment:
        env = GymnasiumEnv(source.task, source.obs, environment, film)
    else:
        env = Simulator(source.task, source.render, source.actions)
    console.note(f"policy {source.folder}, engine {source.engine}")
    with closing(env):
        yield env, agent


def _run_episodes(
    env: Environment, agent: Agent, outputs: dict[int, Path | None], grid: Grid | None, until_success: bool
) -> list[EpisodeResult]:
    """Runs the episode of every seed in `outputs`, recording it to the video given there."""
    from ddp_cli.evaluation.filming import record_episode
    from ddp_cli.evaluation.grid import record_episode_grid
    from ddp_cli.evaluation.rollout import run_episode

    results: list[EpisodeResult] = []
    with console.progress(f"rollout {env.task.name}") as update:

        def on_episode(result: EpisodeResult) -> None:
            results.append(result)
            update(len(results), len(outputs), f"{sum(r.success for r in results)} succeeded")

        video = next(iter(outputs.values()))
        if grid and video:
            record_episode_grid(env, agent, list(outputs), grid, video, on_episode)
            return results
        for seed, path in outputs.items():
            on_episode(record_episode(env, agent, seed, path) if path else run_episode(env, agent, seed))
            if until_success and results[-1].success:
                break
    return results


def _print_results(results: list[EpisodeResult], videos: list[Path], failures: Path | None) -> None:
    if failures and not results:
        console.result(f"no failures in '{failures}': nothing to record")
    for result in results:
        outcome = "success" if result.success else "no success"
        score = "" if result.score is None else f", score {result.score:.3f}"
        console.result(
            f"seed {result.seed}: {outcome} after {result.steps} steps{score}, {result.chunk_ms:.0f} ms per action "
            "chunk"
        )
    if len(results) > 1:
        console.result(f"{sum(r.success for r in results)} of {len(results)} episodes succeeded")
    for video in videos:
        console.result(f"video: {video}")
