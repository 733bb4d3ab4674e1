"""Recorded demos to the store: checked, what was not recorded is looked at in the simulator, written."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddp_cli.data.conversion_plan import DEFAULT, ConvertOptions, Plan, plan_conversion
from ddp_cli.data.demo_file import Demo, DemoFile
from ddp_cli.data.observations import Episode, RenderSpec, look
from ddp_cli.data.replay_check import check_demo
from ddp_cli.data.replay_report import ReplayResult, verdict
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import ConfigError
from ddp_cli.parallel import begin, ordered_map
from ddp_cli.sim.renderer import check_profile
from ddp_cli.sim.simulator import Simulator, check_actions, versions
from ddp_cli.tasks import ACTION_DIM, ACTIONS, Task, check_obs

Progress = Callable[[str, int, int], None]
"""Called with what is done (check, convert), how much of it is done, and how much there is."""


@dataclass(frozen=True)
class ConversionResult:
    """What `convert` did."""

    episodes: int
    frames: int
    megabytes: float
    obs: str
    observations: tuple[str, ...]
    """Which were taken from the file; all others were looked at in the simulator."""
    left_out: dict[str, str]
    check: dict[str, Any]


def convert(
    source: Path,
    out: Path,
    workers: int,
    progress: Progress,
    wanted: ConvertOptions = DEFAULT,
    task: Task | None = None,
) -> ConversionResult:
    """Converts the demos in `source` to the store `out`, replacing what is there. `task` is by default the built-in
    one of their environment.

    Memory holds a few episodes at a time, whatever the number of demos. An interrupted call goes on where it
    ended; any error removes what was written.
    """
    check_profile(wanted.render)
    check_actions(wanted.actions)
    check_obs(wanted.obs)
    with DemoFile(source, task, wanted.subset) as demos:
        plan = plan_conversion(demos, wanted)
        digest = begin(demos.sha256)  # which takes a third as long as copying
        checked = _check(demos, plan, wanted.check, workers, progress)
        plan = plan.without({key for demo in checked for key in demo.differing})
        attributes = {
            "render": plan.how.render,
            "obs": wanted.obs,
            "env_args": demos.origin.env_args(),
            "versions": versions(),
            "action": ACTIONS[wanted.actions],
            "source": {
                "file": source.name, "sha256": digest.result(), "demos": plan.names, "left_out": plan.left_out,
                "observations": list(plan.recorded),
            },
        }  # fmt: skip
        with StoreWriter(out, demos.task, plan.lengths, attributes, wanted.zarr_format) as writer:
            rest = (demos.read(name, plan.recorded) for name in plan.names[writer.episodes :])
            writer.extend(_episodes(demos.task, plan.how, rest, workers), functools.partial(progress, "convert"))
        check = verdict(checked)
        writer.finish({"check": check})
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return ConversionResult(
        len(plan.lengths), sum(plan.lengths), size / 1e6, wanted.obs, plan.recorded, plan.left_out, check
    )


def _check(demos: DemoFile, plan: Plan, count: int, workers: int, progress: Progress) -> list[ReplayResult]:
    """Executes `count` demos, spread over the file."""
    count = min(max(count, bool(plan.recorded)), len(plan.names))  # what is copied is never copied unseen
    if not count:
        return []
    names = [plan.names[i] for i in np.linspace(0, len(plan.names) - 1, count).round().astype(int)]
    checked: list[ReplayResult] = []
    progress("check", 0, count)
    make = functools.partial(_checker, demos.task, plan.how, demos.origin.lite_physics)
    chosen = (demos.read(name, plan.recorded) for name in names)
    with closing(ordered_map(make, chosen, min(workers, count))) as results:
        for result in results:
            checked.append(result)
            progress("check", len(checked), count)
    return checked


def _checker(task: Task, how: RenderSpec, lite_physics: bool) -> Callable[[Demo], ReplayResult]:
    sim = executor = Simulator(task, how.render, lite_physics=lite_physics)
    if how.actions == "absolute":
        executor = Simulator(task, how.render, "absolute", lite_physics)
    return functools.partial(check_demo, sim, how, executor)


def _episodes(task: Task, how: RenderSpec, demos: Iterator[Demo], workers: int) -> Iterator[Episode]:
    first = next(demos, None)
    if first is None:
        return
    demos = itertools.chain([first], demos)
    if not how.needs_simulator(task, first):
        yield from (look(None, how, demo) for demo in demos)  # all is recorded: no processes
        return
    with closing(ordered_map(functools.partial(_looker, task, how), demos, workers)) as episodes:
        yield from episodes


def _looker(task: Task, how: RenderSpec) -> Callable[[Demo], Episode]:
    sim = Simulator(task, how.render)
    if not task.built_in:
        check_state_determines_observations(sim)
    return functools.partial(look, sim, how)


def check_state_determines_observations(sim: Simulator) -> None:
    """ConfigError for observables that setting a state does not bring back (accelerations, for one): the store
    would hold others than a rollout sees.
    """
    sim.reset(0)
    rng = np.random.default_rng(0)
    for action in rng.uniform(-1, 1, (5, ACTION_DIM)):
        sim.step(action)
    state, seen = sim.state(), sim.low_dim()
    for action in rng.uniform(-1, 1, (5, ACTION_DIM)):
        sim.step(action)
    sim.show_state(state)
    lost = [key for key, value in sim.low_dim().items() if not np.array_equal(value, seen[key])]
    if lost:
        raise ConfigError(
            f"task '{sim.task.name}': '{lost[0]}' does not follow from the recorded state alone, so it cannot be "
            "converted.",
            "Leave it out of the task.",
        )
