"""The evaluation of one policy by `ddp eval`: progress, a table, and the report in its run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.choices import Engine, Sampler
from ddp_cli.deploy.policy_source import PolicySource, is_exported, open_policy_source
from ddp_cli.seeds import purposes_of_seeds

if TYPE_CHECKING:
    from ddp_cli.evaluation.evaluation import Evaluation
    from ddp_cli.evaluation.rollout import Agent, Environment
    from ddp_cli.parallel import Workers
    from ddp_cli.sim.gymnasium_env import GymnasiumSettings
    from ddp_cli.training.distributed import Processes


OTHER_PURPOSES = ("collect", "training")
"""Seeds of these purposes have shaped a policy: its demonstrations, or the choice of its checkpoint."""


@dataclass(frozen=True)
class EvalOptions:
    """What every policy of one command is evaluated with."""

    episodes: int
    seed: int
    max_margin: float
    """Stop when the 95% interval is this narrow on each side; 0 runs all episodes."""
    sampler: Sampler | None
    inference_steps: int | None
    engine: Engine
    workers: Workers | None
    """None: one process per CPU core of this machine."""
    device: str
    environment: GymnasiumSettings | None = None
    """None: the simulator of the policy's task."""

    def make_env(self, source: PolicySource) -> Callable[[Agent], Environment]:
        """What makes the environment of the episodes of `source`; it can be pickled."""
        from ddp_cli.evaluation.evaluation import make_gymnasium_env, make_simulator

        if self.environment:
            return functools.partial(make_gymnasium_env, source.task, self.environment)
        return functools.partial(make_simulator, source.task, source.render)

    def lacks_environment(self, folder: Path, processes: Processes) -> bool:
        """Whether there is nothing that the policy in `folder` could run an episode in."""
        return self.environment is None and self.open(folder, processes).task.simulator is None

    def open(self, folder: Path, processes: Processes) -> PolicySource:
        """The policy in `folder`; ConfigError or DdpError where it cannot be run with these options."""
        # Exported policies run on the CPU; the device that torchrun assigned to this process does not concern them.
        device = self.device if is_exported(folder) else processes.local_device(self.device)
        return open_policy_source(folder, device, self.sampler, self.inference_steps, self.engine)


def measure(
    source: PolicySource, eval_options: EvalOptions, processes: Processes, quiet: bool = False
) -> dict[str, Any]:
    """Runs the episodes of one policy, prints a table unless `quiet`, writes the report into its run and returns it."""
    from ddp_cli.evaluation.report import report_name, write_report

    folder, seed = source.folder, eval_options.seed
    console.note(f"policy {folder}, {source.sampler} with {source.inference_steps} steps, engine {source.engine}")
    started = time.perf_counter()
    result = _run_episodes(source, eval_options, processes)
    report = {
        "checkpoint": str(folder), "task": source.task.name, "obs": source.obs, "step": source.step,
        "sampler": source.sampler, "inference_steps": source.inference_steps, "engine": source.engine,
        "first_seed": seed, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    count = len(result.episodes) + len(result.crashed_seeds)
    if eval_options.environment:
        report["env"] = eval_options.environment.to_json()
    report |= result.to_json()
    report["until_ci"] = eval_options.max_margin or None
    report["interval_is_approximate"] = bool(eval_options.max_margin)
    # Other purposes start robosuite's environments with their seeds.
    purposes = [] if eval_options.environment else purposes_of_seeds(range(seed, seed + count))
    report["seeds_also_used_for"] = [purpose for purpose in purposes if purpose in OTHER_PURPOSES]
    if processes.is_main:
        if not quiet:
            _print_table(report, result)
        if folder.parent.name == "checkpoints":
            write_report(folder.parents[1] / "eval" / report_name(report), report)
    return report


def _run_episodes(source: PolicySource, eval_options: EvalOptions, processes: Processes) -> Evaluation:
    """The episodes of all processes, of which this one runs its share."""
    from ddp_cli.evaluation.evaluation import Evaluation, evaluate
    from ddp_cli.parallel import at_most, default_workers

    first = eval_options.seed
    seeds = range(first, first + eval_options.episodes)[processes.shard(eval_options.episodes)]
    workers = at_most(eval_options.workers or max(1, default_workers() // processes.local_world_size), len(seeds))
    successes = done = 0
    with console.progress(f"eval {source.task.name}") as update:

        def progress(success: bool) -> None:
            nonlocal successes, done
            successes, done = successes + success, done + 1
            update(done, len(seeds), f"{successes} succeeded")

        own = evaluate(
            source.make_agent, eval_options.make_env(source), seeds, workers,
            lambda episode: progress(episode.success), eval_options.max_margin,
        )  # fmt: skip
    parts = processes.gather(own)
    return Evaluation(
        [episode for part in parts for episode in part.episodes],
        [seed for part in parts for seed in part.crashed_seeds],
    )


def _score_rows(report: dict[str, Any], result: Evaluation) -> list[tuple[str, str, str]]:
    """Score and rewards where the environment has them; otherwise how often success was held."""
    if not result.scores:
        return [("held for 10 steps", f"{result.held_rate:.1%}", "")]
    interval = describe_interval(report["score_interval_95"], ".3f")
    return [
        (
            "score",
            f"{report['score']:.3f}",
            f"mean of the highest {report['env']['score_key']} of an episode, {interval}",
        ),
        ("return", f"{report['total_reward']:.1f}", "mean sum of rewards"),
    ]


def describe_interval(interval: Sequence[float] | None, style: str) -> str:
    """A 95% interval as text, its ends formatted as `style` says; None for a single episode."""
    return "one episode" if interval is None else f"95% interval {interval[0]:{style}} to {interval[1]:{style}}"


def _print_table(report: dict[str, Any], result: Evaluation) -> None:
    low, high = result.interval
    count, seconds, first = len(result.episodes), report["seconds"], report["first_seed"]
    rows = [
        (
            "success rate",
            f"{result.success_rate:.1%}",
            f"{result.successes} of {count} episodes, 95% interval {low:.1%} to {high:.1%}",
        ),
        *_score_rows(report, result),
        (
            "steps to success",
            f"{result.mean_steps:.1f}" if result.successes else "none",
            "mean over successful episodes",
        ),
        (
            "time per action chunk",
            f"{result.chunk_ms:.0f} ms",
            f"median, {report['sampler']} with {report['inference_steps']} steps, engine {report['engine']}",
        ),
        (
            "episodes per hour",
            f"{3600 * count / seconds:.0f}",
            f"seeds {first} to {first + count + len(result.crashed_seeds) - 1}, in {console.duration(seconds)}",
        ),
    ]
    if report["until_ci"]:
        rows.insert(1, ("", "", "approximate: when --until-ci stops depends on the results"))
    if result.crashed_seeds:
        crashed = result.crashed_seeds
        rows.append(("not run", str(len(crashed)), f"their worker process crashed each time: seeds {crashed}"))
    console.table(f"{report['task']} from {report['obs']}: {report['checkpoint']}", rows)
