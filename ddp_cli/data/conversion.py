"""Recorded demos to the store: checked, what was not recorded is looked at in the simulator, written."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddp_cli.data.copying import choose
from ddp_cli.data.demos import Demo, DemoFile
from ddp_cli.data.looking import Episode, Looking, look
from ddp_cli.data.store import StoreWriter
from ddp_cli.data.verdict import Checked, verdict
from ddp_cli.data.verification import check_demo
from ddp_cli.errors import ConfigError, DataError, DdpError, WorkerError
from ddp_cli.parallel import ordered_map
from ddp_cli.sim.renderer import check_profile
from ddp_cli.sim.simulator import Simulator, check_actions, versions
from ddp_cli.tasks import ACTION_DIM, ACTIONS, Task, check_obs

CHECKED = 3
"""Demos that are executed by default."""


@dataclass(frozen=True)
class Wanted:
    """How to convert. `obs` "state" draws nothing; `actions` "absolute" stores the goals that recorded delta actions
    set, each computed at the recorded state, not along a replay that drifts. Pictures that were recorded are kept,
    unless `rerender`. `subset` names a filter of the file, `only` is a slice of its demos. `check`: how many demos
    are executed to see if they do what they did; `skip_bad` leaves out demos with faults.
    """

    obs: str = "image"
    actions: str = "delta"
    render: str = "fast"
    rerender: bool = False
    subset: str | None = None
    only: str | None = None
    check: int = CHECKED
    skip_bad: bool = False
    zarr_format: int = 3


@dataclass(frozen=True)
class Plan:
    """What converting a file comes to."""

    names: list[str]
    lengths: list[int]
    left_out: dict[str, str] = field(default_factory=dict)
    """Names of bad demos -> what is wrong with them."""
    recorded: tuple[str, ...] = ()
    """Keys of the observations that are taken from the file."""
    why: str = ""
    """What the file lacks, so that they are not."""

    def copies_pictures(self, task: Task) -> bool:
        """Whether pictures are taken from the file: those were drawn as robosuite draws."""
        return any(key in self.recorded for key in task.cameras)


@dataclass(frozen=True)
class Converted:
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
    progress: Callable[[str, int, int], None],
    wanted: Wanted = Wanted(),
    task: Task | None = None,
) -> Converted:
    """Converts the demos in `source` to the store `out`, replacing what is there. `task` is by default the built-in
    one of their environment.

    Memory holds a few episodes at a time, whatever the number of demos. An interrupted call goes on where it
    ended; any error removes what was written. `progress(what is done, steps done, steps in all)`.
    """
    check_profile(wanted.render)
    check_actions(wanted.actions)
    check_obs(wanted.obs)
    with DemoFile(source, task, wanted.subset) as demos:
        how = _looking(demos, wanted)
        plan = make_plan(demos, wanted)
        render = "full" if plan.copies_pictures(demos.task) else wanted.render
        checked = _check(demos, plan, how, render, wanted.check, workers, progress)
        plan = _without(plan, {key for demo in checked for key in demo.differing})
        attributes = {
            "render": render,
            "obs": wanted.obs,
            "env_args": demos.origin.env_args(),
            "versions": versions(),
            "action": ACTIONS[wanted.actions],
            "source": {
                "file": source.name, "sha256": demos.sha256(), "demos": plan.names, "left_out": plan.left_out,
                "observations": list(plan.recorded),
            },
        }  # fmt: skip
        writer = StoreWriter(out, demos.task, plan.lengths, attributes, wanted.zarr_format)
        try:
            _write(writer, demos, plan, how, render, workers, functools.partial(progress, "convert"))
        except (WorkerError, KeyboardInterrupt):
            writer.flush()  # run again: the finished episodes are kept
            raise
        except (DdpError, OSError):
            writer.discard()
            raise
        check = verdict(checked)
        writer.finish({"check": check})
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return Converted(len(plan.lengths), sum(plan.lengths), size / 1e6, wanted.obs, plan.recorded, plan.left_out, check)


def _looking(demos: DemoFile, wanted: Wanted) -> Looking:
    """DataError where the recorded actions would mean something else here."""
    origin = demos.origin
    obstacles = origin.obstacles()
    if obstacles:
        raise DataError(
            f"'{demos.path}' cannot be converted: {'; '.join(obstacles)}.",
            "A policy that learns it would be executed by other controllers. Record it with `ddp collect`, "
            "or with OSC_POSE.",
        )
    if origin.actions == "absolute" and wanted.actions == "delta":
        raise DataError(
            f"'{demos.path}' holds absolute actions (control_delta is off).", "Add --actions absolute to keep them."
        )
    return Looking(wanted.obs, wanted.actions, origin.actions)


def make_plan(demos: DemoFile, wanted: Wanted) -> Plan:
    """Reads every demo once, to find bad ones before an hour is spent on the good ones. DataError names the first,
    unless they are to be left out.
    """
    left_out: dict[str, str] = {}
    lengths: dict[str, int] = {}
    seen: dict[str, str] = {}
    for i in choose(len(demos.names), wanted.only, f"'{demos.path}'"):
        name = demos.names[i]
        try:
            demo = demos.read(name)
            content = hashlib.sha256(demo.states.tobytes() + demo.actions.tobytes()).hexdigest()
            if content in seen:
                raise DataError(f"'{demos.path}' {name} repeats {seen[content]}.", "Remove one of them.")
            seen[content] = name
            lengths[name] = len(demo.actions)
        except DataError as e:
            if not wanted.skip_bad:
                raise DataError(e.message, f"{e.hint} Or leave out demos with faults: --skip-bad.".strip()) from e
            left_out[name] = e.message
    if not lengths:
        raise DataError(f"'{demos.path}': none of {len(left_out)} demos can be used.", next(iter(left_out.values())))
    names = list(lengths)
    why = "they are to be drawn anew" if wanted.rerender else demos.unseen(wanted.obs, names)
    keys = () if why else (*demos.task.images(wanted.obs), *demos.task.vectors("state"))
    return Plan(names, list(lengths.values()), left_out, keys, why)


def _check(
    demos: DemoFile,
    plan: Plan,
    how: Looking,
    render: str,
    count: int,
    workers: int,
    progress: Callable[[str, int, int], None],
) -> list[Checked]:
    """Executes `count` demos, spread over the file."""
    count = min(max(count, bool(plan.recorded)), len(plan.names))  # what is copied is never copied unseen
    if not count:
        return []
    names = [plan.names[i] for i in np.linspace(0, len(plan.names) - 1, count).round().astype(int)]
    checked: list[Checked] = []
    progress("check", 0, count)
    make = functools.partial(_checker, demos.task, how, render, demos.origin.lite_physics)
    chosen = (demos.read(name, plan.recorded) for name in names)
    with closing(ordered_map(make, chosen, min(workers, count))) as results:
        for result in results:
            checked.append(result)
            progress("check", len(checked), count)
    return checked


def _without(plan: Plan, keys: set[str]) -> Plan:
    """The plan, with `keys` looked at anew."""
    return dataclasses.replace(plan, recorded=tuple(key for key in plan.recorded if key not in keys))


def _checker(task: Task, how: Looking, render: str, lite_physics: bool) -> Callable[[Demo], Checked]:
    sim = Simulator(task, render, lite_physics=lite_physics)
    executor = sim
    if how.actions == "absolute":
        executor = Simulator(task, render, "absolute", lite_physics)
    return functools.partial(check_demo, sim, how, executor)


def _write(
    writer: StoreWriter,
    demos: DemoFile,
    plan: Plan,
    how: Looking,
    render: str,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    done, total = sum(plan.lengths[: writer.episodes]), sum(plan.lengths)
    progress(done, total)
    rest = (demos.read(name, plan.recorded) for name in plan.names[writer.episodes :])
    for episode in _episodes(demos.task, how, render, rest, workers):
        writer.append(episode)
        done += len(episode["action"])
        progress(done, total)


def _episodes(task: Task, how: Looking, render: str, demos: Iterator[Demo], workers: int) -> Iterator[Episode]:
    first = next(demos, None)
    if first is None:
        return
    demos = itertools.chain([first], demos)
    if not how.needs_simulator(task, first):
        yield from (look(None, how, demo) for demo in demos)  # all is recorded: no processes
        return
    with closing(ordered_map(functools.partial(_looker, task, render, how), demos, workers)) as episodes:
        yield from episodes


def _looker(task: Task, render: str, how: Looking) -> Callable[[Demo], Episode]:
    sim = Simulator(task, render)
    if not task.built_in:
        check_recalled(sim)
    return functools.partial(look, sim, how)


def check_recalled(sim: Simulator) -> None:
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
