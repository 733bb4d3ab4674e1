"""The evaluation of one policy by `ddp eval`: progress, and the report in its run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.choices import Engine, Sampler
from ddp_cli.commands.eval_table import print_table
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
    from ddp_cli.evaluation.report import report_folder, report_name, write_report

    folder, seed = source.folder, eval_options.seed
    console.note(f"policy {folder}, {source.sampler} with {source.inference_steps} steps, engine {source.engine}")
    started = time.perf_counter()
    result = _run_episodes(source, eval_options, processes)
    report = {
        "checkpoint": str(folder), "task": source.task.name, "obs": source.obs, "step": source.step,
        "sampler": source.sampler, "inference_steps": source.inference_steps, "engine": source.engine,
        "device": source.device, "first_seed": seed, "seconds": time.perf_counter() - started,
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
            print_table(report, result)
        if eval_options.max_margin and result.margin > eval_options.max_margin:
            console.warn(f"{count} episodes are not enough for --until-ci {eval_options.max_margin:g}: raise -n.")
        if reports := report_folder(folder):
            path = reports / report_name(report)
            write_or_warn(path, lambda: write_report(path, report))
    return report


def write_or_warn(path: Path, write: Callable[[], object]) -> bool:
    """Whether `write` could write `path`, which is not the report that --out names. If not, that is a warning: the
    result, and what is still to be evaluated, must not be lost with it.
    """
    try:
        write()
    except OSError as e:
        cause = e.strerror or " ".join(str(e).split())
        console.warn(f"'{path.name}' cannot be written to '{path.parent}': {cause}. Choose another place with --out.")
        return False
    return True


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
