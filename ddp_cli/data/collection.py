"""Collects demonstrations of scripted policies, in several processes; or episodes of a policy that they label."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddp_cli.data.collection_folder import CollectionFolder, count_demos
from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_writer import DemoWriter
from ddp_cli.data.policy_demonstrations import ActingPolicy
from ddp_cli.errors import DataError, DdpError
from ddp_cli.locks import lock_output
from ddp_cli.parallel import Workers, ordered_map
from ddp_cli.sim.environment import env_args, simulator_versions
from ddp_cli.sim.scripted_policies import SCRIPT_VERSION, check_scripted_policy, scripted_actions
from ddp_cli.sim.simulator import SUCCESS_HOLD_STEPS, Simulator
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
    policy_successes: int | None = None
    """Demos in which a policy succeeded by itself; None without a policy."""
    takeovers: int | None = None
    """Demos in which the scripted policy took control from a policy; None without a policy."""


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
    task: Task,
    episodes: int,
    out: Path,
    seed: int,
    workers: Workers,
    progress: Callable[[int, int, int], None],
    policy: ActingPolicy | None = None,
) -> CollectionResult:
    """Writes `episodes` successful demos from the seeds `seed`, `seed` + 1, ... to the file `out`; or, where `policy`
    acts, its episodes, successful or not.

    The content does not depend on `workers`. Until it is complete, every demo is kept in a folder beside `out`, from
    which the same call, or one for more episodes, continues after any interruption or error. DataError if that folder
    holds more demos, or those of another collection. `progress(demos, attempts, failures)` is called after every
    attempt.
    """
    check_scripted_policy(task)
    identity: dict[str, Any] = {
        "task": task.name, "seed": seed, "demonstrator": SCRIPT_VERSION, "versions": simulator_versions(),
    }  # fmt: skip
    if not task.is_built_in:  # the file of a task may change between two calls
        environment = env_args(task) | {"env_version": None, "horizon": task.horizon}  # `versions` has the version
        text = json.dumps(environment, sort_keys=True)
        identity["environment"] = hashlib.sha256(text.encode()).hexdigest()[:8]
    if policy:
        identity["policy"] = policy.identity
    make_recorder = functools.partial(policy.make_recorder if policy else _make_recorder, task)
    with lock_output(out):
        folder = CollectionFolder(out, identity)
        if (least := folder.n_demos + folder.n_gaps) > episodes:
            raise DataError(
                f"'{folder.path}' already holds {count_demos(folder.n_demos)}, but -n is {episodes}.",
                f"Ask for -n {least} or more, choose another --out, or move that folder away.",
            )
        try:
            _record_missing(folder, make_recorder, episodes, seed, workers, progress)
            result = _write_file(folder, task, out, identity | {"episodes": episodes})
        except BaseException as e:
            if folder.n_demos:
                e.add_note(
                    f"{count_demos(folder.n_demos)} {'is' if folder.n_demos == 1 else 'are'} kept in "
                    f"'{folder.path}': the same command continues."
                )
            else:
                with contextlib.suppress(OSError):
                    folder.remove()
            raise
        folder.remove()
    return result


def _record_missing(
    folder: CollectionFolder,
    make_recorder: Callable[[], Callable[[int], Demo | None]],
    episodes: int,
    seed: int,
    workers: Workers,
    progress: Callable[[int, int, int], None],
) -> None:
    """Adds demos to `folder` until it holds `episodes`."""
    progress(*folder.counts.values())
    if folder.n_demos < episodes:
        numbers, seeds = itertools.tee(folder.missing_attempts())
        consecutive_failures = 0
        with closing(ordered_map(make_recorder, (seed + i for i in seeds), workers)) as demos:
            while folder.n_demos < episodes:
                demo = next(demos)
                folder.add(next(numbers), demo)
                consecutive_failures = 0 if demo else consecutive_failures + 1
                if consecutive_failures == MAX_CONSECUTIVE_FAILURES:
                    raise DdpError(f"{MAX_CONSECUTIVE_FAILURES} attempts failed in a row.", "Run `ddp doctor`.")
                progress(*folder.counts.values())


def _write_file(folder: CollectionFolder, task: Task, out: Path, identity: dict[str, Any]) -> CollectionResult:
    """Writes the demos of `folder` to the file `out`."""
    counts = folder.counts
    with DemoWriter(out, env_args(task), identity) as writer:
        policy_successes = takeovers = 0
        for demo in folder:
            writer.append(demo)
            if demo.policy_steps is not None:
                takeovers += demo.policy_steps < len(demo.actions)
                policy_successes += demo.policy_steps == len(demo.actions) and bool(demo.success)
        writer.finish(counts["attempts"])
    result = CollectionResult(**counts, steps=writer.n_steps)
    if "policy" not in identity:
        return result
    return replace(result, policy_successes=policy_successes, takeovers=takeovers)


def _make_recorder(task: Task) -> Callable[[int], Demo | None]:
    return functools.partial(record_demo, Simulator(task))
