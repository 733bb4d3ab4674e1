"""Collects demonstrations of scripted policies, in several processes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_writer import DemoWriter
from ddp_cli.errors import DdpError
from ddp_cli.evaluation.rollout import SUCCESS_HOLD_STEPS
from ddp_cli.parallel import ordered_map
from ddp_cli.sim.environment import env_args, simulator_versions
from ddp_cli.sim.scripted_policies import SCRIPT_VERSION, check_scripted_policy, scripted_actions
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task

DEMONSTRATOR_STREAM = 7  # of random numbers, independent of the stream that places the objects
MAX_CONSECUTIVE_FAILURES = 50


@dataclass(frozen=True)
class CollectionResult:
    """Summary of a collection."""

    demos: int
    attempts: int
    failures: int
    steps: int


def record_demo(sim: Simulator, seed: int) -> Demo | None:
    """One episode of the scripted policy from the initial state `seed`; None if it does not succeed.

    Replaying its actions from its first state reproduces the states bit for bit.
    """
    sim.reset(seed)
    xml = sim.model_xml()
    rng = np.random.default_rng([seed, DEMONSTRATOR_STREAM])
    states, executed, intended, success_steps = [], [], [], 0
    for intended_action, action in itertools.islice(scripted_actions(sim, rng), sim.task.horizon):
        states.append(sim.state())
        executed.append(action)
        intended.append(intended_action)
        success_steps = success_steps + 1 if sim.step(action) else 0
        if success_steps == SUCCESS_HOLD_STEPS:
            return Demo(np.stack(states), np.stack(executed), xml, seed, np.stack(intended))
    return None


def collect(
    task: Task, episodes: int, out: Path, seed: int, workers: int, progress: Callable[[int, int, int], None]
) -> CollectionResult:
    """Writes `episodes` successful demos from the seeds `seed`, `seed` + 1, ... to the file `out`.

    The content does not depend on `workers`. The same call resumes an interrupted collection.
    `progress(demos, attempts, failures)` is called after every attempt.
    """
    check_scripted_policy(task)
    identity = {
        "task": task.name, "episodes": episodes, "seed": seed, "demonstrator": SCRIPT_VERSION,
        "versions": simulator_versions(),
    }  # fmt: skip
    with DemoWriter(out, env_args(task), identity) as writer:
        counts = writer.counts
        progress(counts["demos"], counts["attempts"], counts["failures"])
        seeds = itertools.count(seed + counts["attempts"])
        consecutive_failures = 0
        with closing(ordered_map(functools.partial(_make_recorder, task), seeds, workers)) as attempts:
            while counts["demos"] < episodes:
                demo = next(attempts)
                writer.append(demo)
                counts = writer.counts
                consecutive_failures = 0 if demo else consecutive_failures + 1
                if consecutive_failures == MAX_CONSECUTIVE_FAILURES:
                    raise DdpError(
                        f"{MAX_CONSECUTIVE_FAILURES} attempts at {task.name} failed in a row.", "Run `ddp doctor`."
                    )
                progress(counts["demos"], counts["attempts"], counts["failures"])
        writer.finish()
    return CollectionResult(counts["demos"], counts["attempts"], counts["failures"], counts["total"])


def _make_recorder(task: Task) -> Callable[[int], Demo | None]:
    return functools.partial(record_demo, Simulator(task))
