"""Demonstrations made by scripted demonstrators, several processes at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddp_cli.data.demo_file import Demo
from ddp_cli.data.demo_writer import DemoWriter
from ddp_cli.errors import DdpError
from ddp_cli.evaluation.rollout import HOLD_STEPS
from ddp_cli.parallel import ordered_map
from ddp_cli.sim.scripted_policies import VERSION, check_scripted_policy, scripted_actions
from ddp_cli.sim.simulator import Simulator, env_args, versions
from ddp_cli.tasks import Task

EXPERT_STREAM = 7  # keeps the demonstrator's random numbers apart from the placement's
GIVE_UP = 50  # failures in a row after which something must be wrong


@dataclass(frozen=True)
class CollectionResult:
    """What `collect` did."""

    demos: int
    attempts: int
    failures: int
    steps: int


def record(sim: Simulator, seed: int) -> Demo | None:
    """One episode from `seed`: states before each action, actions, what was intended. None if it did not succeed.

    Replaying the actions from the first state gives the same states bit for bit.
    """
    sim.reset(seed)
    xml = sim.model_xml()
    rng = np.random.default_rng([seed, EXPERT_STREAM])
    states, actions, intentions, held = [], [], [], 0
    for intended, action in itertools.islice(scripted_actions(sim, rng), sim.task.horizon):
        states.append(sim.state())
        actions.append(action)
        intentions.append(intended)
        held = held + 1 if sim.step(action) else 0
        if held == HOLD_STEPS:
            return Demo(np.stack(states), np.stack(actions), xml, seed, np.stack(intentions))
    return None


def collect(
    task: Task, episodes: int, out: Path, seed: int, workers: int, progress: Callable[[int, int, int], None]
) -> CollectionResult:
    """Writes `episodes` successful demos from seeds `seed`, `seed` + 1, ... to `out`.

    The content does not depend on `workers`. An interrupted call goes on where it ended.
    `progress(demos, attempts, failures)` is called after every attempt.
    """
    check_scripted_policy(task)
    identity = {
        "task": task.name, "episodes": episodes, "seed": seed, "demonstrator": VERSION, "versions": versions(),
    }  # fmt: skip
    with DemoWriter(out, env_args(task), identity) as writer:
        counts = writer.counts
        progress(counts["demos"], counts["attempts"], counts["failures"])
        seeds = itertools.count(seed + counts["attempts"])
        in_a_row = 0
        with closing(ordered_map(functools.partial(_recorder, task), seeds, workers)) as attempts:
            while counts["demos"] < episodes:
                demo = next(attempts)
                writer.append(demo)
                counts = writer.counts
                in_a_row = 0 if demo else in_a_row + 1
                if in_a_row == GIVE_UP:
                    raise DdpError(f"{GIVE_UP} attempts at {task.name} failed in a row.", "Run `ddp doctor`.")
                progress(counts["demos"], counts["attempts"], counts["failures"])
        writer.finish()
    return CollectionResult(counts["demos"], counts["attempts"], counts["failures"], counts["total"])


def _recorder(task: Task) -> Callable[[int], Demo | None]:
    return functools.partial(record, Simulator(task))
