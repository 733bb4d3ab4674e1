"""Films of the episodes of an evaluation, run again from the same starts with the same policy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli.deploy.policy_source import open_policy_source, resolve_policy
from ddp_cli.errors import DdpError
from ddp_cli.evaluation.report import EvalReport, parse_report
from ddp_cli.report.evaluations import Report

if TYPE_CHECKING:
    from ddp_cli.evaluation.rollout import Environment
    from ddp_cli.report.videos import Videos

SIZE = 256  # [pixels] of each camera
FAILURES, ALL = "failures", "all"

Progress = Callable[[int, int, str], None]


def parse_film(text: str) -> str | int:
    """What `--film` asks for: `failures`, `all`, or a number of episodes; DdpError for anything else."""
    if text in (FAILURES, ALL):
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise DdpError(f"--film '{text}' is not a choice of episodes.", "Valid: failures, all, or a number of episodes.")


def seeds_to_film(report: Report, which: str | int) -> list[int]:
    """Seeds of the episodes of `report` to film; of a number of them, failures come first."""
    episodes = report.content["episodes"]
    failures = [int(e["seed"]) for e in episodes if not e["success"]]
    if which == FAILURES:
        return failures
    seeds = [*failures, *(int(e["seed"]) for e in episodes if e["success"])]
    return seeds[:which] if isinstance(which, int) else seeds


def film_report(report: Report, which: str | int, videos: Videos, progress: Progress) -> dict[str, Any]:
    """Seed -> the id of its video, the control rate [Hz] and whether the film ended as the evaluation did.

    DataError if the report is not of one policy, SimulatorError or CheckpointError where it cannot be run again.
    """
    from ddp_cli.evaluation.filming import record_episode

    seeds = seeds_to_film(report, which)
    if not seeds:
        return {}
    expected = {int(e["seed"]): bool(e["success"]) for e in report.content["episodes"]}
    evaluated = parse_report(report.path, report.content)
    source = _open_source(evaluated)
    agent = source.make_agent()
    films: dict[str, Any] = {}
    with closing(_environment(evaluated, source)) as env:
        for seed in seeds:
            id, path = videos.new_path()
            result = record_episode(env, agent, seed, path, SIZE)
            films[str(seed)] = {
                "video": id, "rate": env.task.schema.rate, "agrees": result.success == expected[seed],
            }  # fmt: skip
            progress(len(films), len(seeds), "episodes filmed")
    return films


def _open_source(report: EvalReport) -> Any:
    """The policy, with sampler, denoising steps and engine of the evaluation."""
    folder = resolve_policy(report.checkpoint_path(), Path(), None)
    if report.engine == "exported":
        return open_policy_source(folder, "auto", None, None, "auto")
    device = "cpu" if report.engine == "onnx" else "auto"
    return open_policy_source(folder, device, report.sampler, report.inference_steps, report.engine or "auto")


def _environment(report: EvalReport, source: Any) -> Environment:
    from ddp_cli.sim.gymnasium_env import GymnasiumEnv, GymnasiumSettings
    from ddp_cli.sim.simulator import Simulator

    if report.env:
        return GymnasiumEnv(source.task, source.obs, GymnasiumSettings.from_json(report.env), film=True)
    return Simulator(source.task, source.render, source.actions)
