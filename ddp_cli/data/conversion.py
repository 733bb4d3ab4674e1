"""Converts raw demonstrations to a store: validates and replays them, renders what was not recorded, writes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddp_cli.data.check_summary import not_verified, summarize_checks, wrong_demos
from ddp_cli.data.conversion_plan import DEFAULT_OPTIONS, ConversionPlan, ConvertOptions, plan_conversion
from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.frame_check import Frame, FrameResult, check_frame
from ddp_cli.data.observations import Episode, RenderSpec, build_episode
from ddp_cli.data.recorded_observations import read_observations, read_step
from ddp_cli.data.replay_check import GAP_STEPS, ReplayResult, check_demo
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.data.trimming import Steps
from ddp_cli.errors import DataError
from ddp_cli.locks import lock_output
from ddp_cli.parallel import Workers, at_most, ordered_map, run_in_thread
from ddp_cli.sim.environment import check_action_convention, simulator_versions
from ddp_cli.sim.observable_checks import check_state_determines_observations
from ddp_cli.sim.renderer import check_render_profile
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task, check_obs

Progress = Callable[[str, int, int], None]
"""Called with the stage ("compare", "check" or "convert"), how much of it is done, and its total: demos, or steps."""

STEPS_PER_DEMO = 3  # that are compared with the simulator; a fault may begin in the middle of a demo
MIN_COMPARED_STEPS = 9  # in all demos together
DEMOS_PER_WORKER = 20  # that are worth starting a process, when some steps of each are compared or replayed


@dataclass(frozen=True)
class ConversionResult:
    """Summary of a conversion."""

    episodes: int
    frames: int
    megabytes: float
    obs: str
    observations: tuple[str, ...]
    """Keys that were copied from the file; all others were computed in the simulator."""
    computed: dict[str, str]
    """Keys that are in the file, but were computed in the simulator -> reason."""
    left_out: dict[str, str]
    """Names of the invalid demos -> fault."""
    notes: list[str]
    """What was assumed or found."""
    check: dict[str, Any]


def convert(
    source: Path,
    out: Path,
    workers: Workers,
    progress: Progress,
    options: ConvertOptions = DEFAULT_OPTIONS,
    task: Task | None = None,
) -> ConversionResult:
    """Converts the demos in the file `source` to the store `out`, replacing an existing one.

    `task` defaults to that of the recorded environment. Memory use does not depend on the number of demos.
    The same call resumes a conversion that was interrupted or failed.
    """
    check_render_profile(options.render)
    check_obs(options.obs)
    with lock_output(out), DemoFile(source, task, options.filter_key) as demos:
        if options.actions is not None:
            check_action_convention(demos.task, options.actions)
        plan = plan_conversion(demos, options)
        policy_episodes = demos.policy_episodes()
        sha256 = run_in_thread(demos.sha256)  # in the background: it takes a third as long as copying
        if demos.has_states:
            plan, check = _check_recording(demos, plan, options, workers, progress)
        else:
            check = not_verified("the file holds no simulator states from which to replay")
        attributes = {
            "render": plan.render_spec.render,
            "obs": options.obs,
            "env_args": demos.info.env_args(),
            "versions": simulator_versions(),
            "action": demos.task.describe_action(plan.render_spec.actions),
            "source": {
                "file": source.name, "sha256": sha256.result(), "demos": plan.demo_names, "left_out": plan.skipped,
                "observations": list(plan.recorded_keys),
                **({"policy_episodes": policy_episodes} if policy_episodes else {}),
            },
        }  # fmt: skip
        with StoreWriter(out, demos.task, plan.lengths, attributes, options.zarr_format) as writer:
            stored = list(zip(plan.demo_names, plan.steps, strict=True))
            remaining = (_read_steps(demos, *demo, plan.recorded_keys) for demo in stored[writer.episodes :])
            episodes = _build_episodes(demos.task, plan.render_spec, remaining, workers)
            writer.extend(episodes, functools.partial(progress, "convert"))
        writer.finish({"check": check})
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return ConversionResult(
        len(plan.lengths), sum(plan.lengths), size / 1e6, options.obs, plan.recorded_keys, plan.computed, plan.skipped,
        plan.notes, check,
    )  # fmt: skip


def _read_steps(demos: DemoFile, name: str, steps: Steps, keys: tuple[str, ...]) -> Demo:
    """The `steps` of the demo `name`, with the recorded observations `keys`."""
    demo = demos.read(name)
    return dataclasses.replace(
        demo,
        states=demo.states[steps],
        actions=demo.actions[steps],
        intended=None if demo.intended is None else demo.intended[steps],
        obs={key: values[steps] for key, values in read_observations(demos, name, keys).items()},
    )


def _check_recording(
    demos: DemoFile, plan: ConversionPlan, options: ConvertOptions, workers: Workers, progress: Progress
) -> tuple[ConversionPlan, dict[str, Any]]:
    """Compares the recorded observations with the simulator's and replays the demos.

    Returns the plan without the observations and demos that turned out to be wrong, and the attribute `check`.
    """
    frames = _compare_frames(demos, plan, workers, progress)
    faults = {frame.demo: frame.image_faults for frame in frames if frame.image_faults}
    if options.skip_bad and faults and len(faults) == len(frames):
        name, texts = next(iter(faults.items()))
        raise DataError(
            f"'{demos.path}': the images of every demo differ from the rendered ones "
            f"({name}: {'; '.join(texts.values())}).",
            "Render them with --rerender.",
        )
    if options.skip_bad:
        plan = plan.without_demos({demo: "; ".join(texts.values()) for demo, texts in faults.items()})
        frames = [frame for frame in frames if frame.demo not in faults]
    for key in plan.recorded_keys:
        differing = [frame.demo for frame in frames if key in frame.differing]
        if differing:
            plan = plan.with_computed({key}, f"its values differ from the simulator's in {differing[0]}")
    # Recorded observations are never copied without replaying a demo.
    count = max(options.check, bool(plan.recorded_keys))
    results = _replay_demos(demos, plan, count, workers, progress)
    wrong = wrong_demos(results)
    while options.skip_bad and wrong and len(wrong) < len(results):
        plan = plan.without_demos(dict.fromkeys(wrong, "its actions have another effect when they are replayed"))
        frames = [frame for frame in frames if frame.demo not in wrong]
        results = [result for result in results if result.demo not in wrong]
        if not any(result.whole for result in results):  # the demos that were replayed as a whole are left out
            results = _replay_demos(demos, plan, count, workers, progress)
        wrong = wrong_demos(results)
    return plan, summarize_checks(results, frames)


def _compare_frames(demos: DemoFile, plan: ConversionPlan, workers: Workers, progress: Progress) -> list[FrameResult]:
    """Compares the recorded observations of some steps of every demo; in small files, of more steps."""
    if not plan.recorded_keys:
        return []
    count = len(plan.demo_names)
    n_steps = max(STEPS_PER_DEMO, MIN_COMPARED_STEPS // count)
    results = {name: FrameResult(name) for name in plan.demo_names}
    frames = (frame for name in plan.demo_names for frame in _read_frames(demos, name, plan.recorded_keys, n_steps))
    progress("compare", 0, count)
    make_check = functools.partial(_make_frame_check, demos.task)
    with closing(ordered_map(make_check, frames, at_most(workers, 1 + count // DEMOS_PER_WORKER))) as comparisons:
        for i, result in enumerate(comparisons):
            results[result.demo].add(result)
            progress("compare", min(count, 1 + i // n_steps), count)
    return list(results.values())


def _read_frames(demos: DemoFile, name: str, keys: tuple[str, ...], count: int) -> Iterator[Frame]:
    """`count` steps of a demo, spread evenly between its ends; fewer if it is shorter."""
    demo = demos.read(name)
    for step in np.unique(np.linspace(0, len(demo.actions) - 1, count + 2)[1:-1].round()).astype(int).tolist():
        first = max(0, step - 1)
        around = slice(first, step + 2)
        frame = dataclasses.replace(
            demo,
            states=demo.states[around],
            actions=demo.actions[around],
            intended=None,
            obs=read_step(demos, name, keys, step),
        )
        yield Frame(frame, step - first)


def _make_frame_check(task: Task) -> Callable[[Frame], FrameResult]:
    return functools.partial(check_frame, Simulator(task, "full"))


def _replay_demos(
    demos: DemoFile, plan: ConversionPlan, count: int, workers: Workers, progress: Progress
) -> list[ReplayResult]:
    """Replays `count` demos as a whole, spread evenly over the file, and some chunks of all others."""
    if not count:
        return []
    total = len(plan.demo_names)
    candidates = [i for i, length in enumerate(plan.lengths) if length > 1]  # of a single step, nothing can be compared
    picks = np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int)
    whole = {candidates[i] for i in picks}
    sample = ((demos.read(name), i in whole) for i, name in enumerate(plan.demo_names))
    results: list[ReplayResult] = []
    progress("check", 0, total)
    make_check = functools.partial(
        _make_demo_check,
        demos.task,
        plan.render_spec,
        demos.info.lite_physics,
        GAP_STEPS if demos.info.is_before_1_5 else 0,
    )
    with closing(ordered_map(make_check, sample, at_most(workers, count + total // DEMOS_PER_WORKER))) as checks:
        for result in checks:
            results.append(result)
            progress("check", len(results), total)
    return results


def _make_demo_check(
    task: Task, spec: RenderSpec, lite_physics: bool, gap_steps: int
) -> Callable[[tuple[Demo, bool]], ReplayResult]:
    sim = replay_sim = Simulator(task, spec.render, lite_physics=lite_physics)
    if spec.actions == "absolute":
        replay_sim = Simulator(task, spec.render, "absolute", lite_physics)
    return lambda item: check_demo(sim, spec, replay_sim, item[0], item[1], gap_steps)


def _build_episodes(task: Task, spec: RenderSpec, demos: Iterator[Demo], workers: Workers) -> Iterator[Episode]:
    first = next(demos, None)
    if first is None:
        return
    demos = itertools.chain([first], demos)
    if not spec.needs_simulator(task, first):
        # Copies only: worker processes do not pay off.
        yield from (build_episode(task, None, spec, demo) for demo in demos)
        return
    with closing(ordered_map(functools.partial(_make_episode_builder, task, spec), demos, workers)) as episodes:
        yield from episodes


def _make_episode_builder(task: Task, spec: RenderSpec) -> Callable[[Demo], Episode]:
    sim = Simulator(task, spec.render)
    if not task.is_built_in:
        check_state_determines_observations(sim)
    return functools.partial(build_episode, task, sim, spec)
