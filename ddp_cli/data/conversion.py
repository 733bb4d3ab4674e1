"""Converts raw demonstrations to a store: validates and replays them, renders what was not recorded, writes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddp_cli.data.conversion_plan import DEFAULT_OPTIONS, ConversionPlan, ConvertOptions, plan_conversion
from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.observations import Episode, RenderSpec, build_episode
from ddp_cli.data.replay_check import ReplayResult, check_demo, summarize_checks
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import ConfigError
from ddp_cli.parallel import ordered_map, run_in_thread
from ddp_cli.sim.environment import check_action_convention, simulator_versions
from ddp_cli.sim.renderer import check_render_profile
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import ACTION_DIM, ACTIONS, Task, check_obs

Progress = Callable[[str, int, int], None]
"""Called with the stage ("check" or "convert"), how much of it is done, and its total: demos, or steps."""


@dataclass(frozen=True)
class ConversionResult:
    """Summary of a conversion."""

    episodes: int
    frames: int
    megabytes: float
    obs: str
    observations: tuple[str, ...]
    """Keys that were copied from the file; all others were computed in the simulator."""
    left_out: dict[str, str]
    """Names of the invalid demos -> fault."""
    check: dict[str, Any]


def convert(
    source: Path,
    out: Path,
    workers: int,
    progress: Progress,
    options: ConvertOptions = DEFAULT_OPTIONS,
    task: Task | None = None,
) -> ConversionResult:
    """Converts the demos in the file `source` to the store `out`, replacing an existing one.

    `task` defaults to the built-in one of the recorded environment. Memory use does not depend on the number of demos.
    The same call resumes an interrupted conversion; any error removes the partial store.
    """
    check_render_profile(options.render)
    check_action_convention(options.actions)
    check_obs(options.obs)
    with DemoFile(source, task, options.filter_key) as demos:
        plan = plan_conversion(demos, options)
        sha256 = run_in_thread(demos.sha256)  # in the background: it takes a third as long as copying
        checks = _check_demos(demos, plan, options.check, workers, progress)
        plan = plan.with_recomputed({key for check in checks for key in check.differing})
        attributes = {
            "render": plan.render_spec.render,
            "obs": options.obs,
            "env_args": demos.info.env_args(),
            "versions": simulator_versions(),
            "action": ACTIONS[options.actions],
            "source": {
                "file": source.name, "sha256": sha256.result(), "demos": plan.demo_names, "left_out": plan.skipped,
                "observations": list(plan.recorded_keys),
            },
        }  # fmt: skip
        with StoreWriter(out, demos.task, plan.lengths, attributes, options.zarr_format) as writer:
            remaining = (demos.read(name, plan.recorded_keys) for name in plan.demo_names[writer.episodes :])
            episodes = _build_episodes(demos.task, plan.render_spec, remaining, workers)
            writer.extend(episodes, functools.partial(progress, "convert"))
        check = summarize_checks(checks)
        writer.finish({"check": check})
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return ConversionResult(
        len(plan.lengths), sum(plan.lengths), size / 1e6, options.obs, plan.recorded_keys, plan.skipped, check
    )


def _check_demos(
    demos: DemoFile, plan: ConversionPlan, count: int, workers: int, progress: Progress
) -> list[ReplayResult]:
    """Replays `count` demos, spread evenly over the file."""
    # Recorded observations are never copied without comparing some of them with the simulator's.
    count = min(max(count, bool(plan.recorded_keys)), len(plan.demo_names))
    if not count:
        return []
    indices = np.linspace(0, len(plan.demo_names) - 1, count).round().astype(int)
    sample = (demos.read(plan.demo_names[i], plan.recorded_keys) for i in indices)
    results: list[ReplayResult] = []
    progress("check", 0, count)
    make_check = functools.partial(_make_demo_check, demos.task, plan.render_spec, demos.info.lite_physics)
    with closing(ordered_map(make_check, sample, min(workers, count))) as checks:
        for result in checks:
            results.append(result)
            progress("check", len(results), count)
    return results


def _make_demo_check(task: Task, spec: RenderSpec, lite_physics: bool) -> Callable[[Demo], ReplayResult]:
    sim = replay_sim = Simulator(task, spec.render, lite_physics=lite_physics)
    if spec.actions == "absolute":
        replay_sim = Simulator(task, spec.render, "absolute", lite_physics)
    return functools.partial(check_demo, sim, spec, replay_sim)


def _build_episodes(task: Task, spec: RenderSpec, demos: Iterator[Demo], workers: int) -> Iterator[Episode]:
    first = next(demos, None)
    if first is None:
        return
    demos = itertools.chain([first], demos)
    if not spec.needs_simulator(task, first):
        yield from (build_episode(None, spec, demo) for demo in demos)  # copies only: worker processes do not pay off
        return
    with closing(ordered_map(functools.partial(_make_episode_builder, task, spec), demos, workers)) as episodes:
        yield from episodes


def _make_episode_builder(task: Task, spec: RenderSpec) -> Callable[[Demo], Episode]:
    sim = Simulator(task, spec.render)
    if not task.is_built_in:
        check_state_determines_observations(sim)
    return functools.partial(build_episode, sim, spec)


def check_state_determines_observations(sim: Simulator) -> None:
    """ConfigError if the task has observables that setting a state does not restore (accelerations, for example):
    their values in the store would differ from those in a rollout.
    """
    sim.reset(0)
    rng = np.random.default_rng(0)
    for action in rng.uniform(-1, 1, (5, ACTION_DIM)):
        sim.step(action)
    state, expected = sim.state(), sim.low_dim()
    for action in rng.uniform(-1, 1, (5, ACTION_DIM)):
        sim.step(action)
    sim.set_kinematic_state(state)
    not_restored = [key for key, value in sim.low_dim().items() if not np.array_equal(value, expected[key])]
    if not_restored:
        raise ConfigError(
            f"task '{sim.task.name}': '{not_restored[0]}' is not determined by the recorded state, so it cannot be "
            "converted.",
            "Remove it from the task.",
        )
