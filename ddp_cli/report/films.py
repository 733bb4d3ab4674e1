"""Films of the episodes of an evaluation, run again from the same starts with the same policy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli.console import Update
from ddp_cli.deploy.policy_source import PolicySource, open_policy_source, resolve_policy
from ddp_cli.errors import WorkerError
from ddp_cli.evaluation.report import EvalReport, parse_report
from ddp_cli.parallel import default_workers, ordered_map
from ddp_cli.report.evaluations import Report
from ddp_cli.report.page_options import FAILURES

if TYPE_CHECKING:
    from ddp_cli.evaluation.rollout import Agent, Environment
    from ddp_cli.report.videos import Videos

SIZE = 256  # [pixels] of each camera


def seeds_to_film(report: Report, which: str | int) -> list[int]:
    """Seeds of the episodes of `report` to film; of a number of them, failures come first."""
    episodes = report.content["episodes"]
    failures = [int(e["seed"]) for e in episodes if not e["success"]]
    if which == FAILURES:
        return failures
    seeds = [*failures, *(int(e["seed"]) for e in episodes if e["success"])]
    return seeds[:which] if isinstance(which, int) else seeds


def film_report(report: Report, which: str | int, videos: Videos, progress: Update) -> dict[str, Any]:
    """Seed -> the id of its video, the control rate [Hz] and whether the film ended as the evaluation did.

    DataError if the report is not of one policy, SimulatorError or CheckpointError where it cannot be run again.
    """
    seeds = seeds_to_film(report, which)
    if not seeds:
        return {}
    expected = {int(e["seed"]): bool(e["success"]) for e in report.content["episodes"]}
    evaluated = parse_report(report.path, report.content)
    source = _open_source(evaluated)
    items = [(seed, *videos.new_path()) for seed in seeds]
    films: dict[str, Any] = {}
    make_recorder = functools.partial(_make_recorder, source.make_agent, _make_env(evaluated, source))
    try:
        with closing(ordered_map(make_recorder, items, min(len(seeds), default_workers()))) as results:
            for (seed, id, _), (success, rate) in zip(items, results, strict=True):
                films[str(seed)] = {"video": id, "rate": rate, "agrees": success == expected[seed]}
                progress(len(films), len(seeds), "episodes filmed")
    except WorkerError as e:
        raise WorkerError(e.message, "Film fewer episodes at once, such as --film 1: each runs a simulator.") from e
    return films


def _make_recorder(
    make_agent: Callable[[], Agent], make_env: Callable[[Agent], Environment]
) -> Callable[[tuple[int, str, Path]], tuple[bool, float]]:
    """A function that films the episode of a seed; it returns whether it succeeded, and the control rate."""
    from ddp_cli.evaluation.filming import record_episode

    agent = make_agent()
    env = make_env(agent)

    def record(item: tuple[int, str, Path]) -> tuple[bool, float]:
        seed, _, path = item
        return record_episode(env, agent, seed, path, SIZE).success, env.task.schema.rate

    return record


def _open_source(report: EvalReport) -> PolicySource:
    """The policy, with sampler, denoising steps, engine and device of the evaluation."""
    folder = resolve_policy(report.checkpoint_path(), Path(), None)
    if report.engine == "exported":
        return open_policy_source(folder, "auto", None, None, "auto")
    engine = report.engine or "auto"
    return open_policy_source(folder, report.rerun_device, report.sampler, report.inference_steps, engine)


def _make_env(report: EvalReport, source: PolicySource) -> Callable[[Agent], Environment]:
    """What makes the environment of the evaluation."""
    from ddp_cli.evaluation.evaluation import make_gymnasium_env, make_simulator
    from ddp_cli.sim.gymnasium_env import GymnasiumSettings

    if report.env:
        settings = GymnasiumSettings.from_json(report.env)
        return functools.partial(make_gymnasium_env, source.task, settings, film=True)
    return functools.partial(make_simulator, source.task, source.render)
