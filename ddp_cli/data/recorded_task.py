"""The task of a recording: the built-in one of its environment, or one that the simulator describes."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

from ddp_cli.data.env_metadata import RecordingInfo
from ddp_cli.errors import DataError
from ddp_cli.robots import NOT_OF_THE_TASK, ROBOTS, Robosuite
from ddp_cli.schema import Camera
from ddp_cli.tasks import ROBOSUITE_RATE, TASKS, Task, with_robot

HORIZON_MARGIN = 1.5
"""An episode of a policy may take this many times the longest demonstration."""
MIN_HORIZON = 100


def built_in_task(info: RecordingInfo) -> Task | None:
    """The built-in task with the environment, robots and controllers of a recording, if there is one."""
    task = same_environment(info)
    if task is None or info.rate != ROBOSUITE_RATE or not set(info.robots) <= set(ROBOTS):
        return None
    if len(info.robots) == 1 == task.n_robots:
        task = with_robot(task, info.robots[0])
    simulator = task.robosuite
    expected = (simulator.robots, simulator.controllers, simulator.env_kwargs)
    return task if (info.robots, _controllers(info), info.other_kwargs) == expected else None


def _describe_differences(info: RecordingInfo, task: Task) -> list[str]:
    """What makes actions of a recording mean something else in `task`, as far as the recording says; empty if nothing
    does.
    """
    simulator, differences = task.robosuite, []
    if info.rate != task.schema.rate:
        differences.append(f"{info.rate:g} Hz, but the task '{task.name}' has {task.schema.rate:g} Hz")
    if info.controllers and _controllers(info) != simulator.controllers:
        recorded, expected = (
            json.dumps(x) if x else "the default" for x in (_controllers(info), simulator.controllers)
        )
        differences.append(f"the controllers {recorded}, but the task '{task.name}' has {expected}")
    return differences


def check_recorded_with(task: Task, info: RecordingInfo, path: Path) -> None:
    """DataError if the recording `path` was made in another environment than that of `task`, or with other robots or
    controllers.
    """
    robots = task.robosuite.robots
    if "robots" in info.kwargs and info.robots != robots:
        raise DataError(
            f"'{path}' was recorded with {' and '.join(info.robots)}, "
            f"but the task '{task.name}' has {' and '.join(robots)}.",
            "Leave out --task, or name a task file with these robots.",
        )
    if not info.incompatibilities() and (differences := _describe_differences(info, task)):
        raise DataError(
            f"'{path}' was recorded with {differences[0]}.",
            "Leave out --task, or name a task file with the same.",
        )
    if task.robosuite.env_name != info.env_name:
        raise DataError(
            f"'{path}' was recorded in {info.env_name}, but the task '{task.name}' uses {task.robosuite.env_name}.",
            "Name the task of this file with --task.",
        )


def recorded_task(info: RecordingInfo, images: Mapping[str, tuple[int, ...]], longest: int) -> tuple[Task, list[str]]:
    """The task of a recording, and notes on what of its environment was left out.

    `images` are the shapes of the recorded images, by key; `longest` the steps of the longest demonstration.
    SimulatorError or ConfigError if today's robosuite cannot make the environment.
    """
    task, notes = built_in_task(info), list[str]()
    if task is None and info.other_kwargs:
        from ddp_cli.sim.discovery import known_arguments

        kwargs, notes = known_arguments(info.env_name, info.other_kwargs)
        info = dataclasses.replace(info, kwargs={k: x for k, x in info.kwargs.items() if k in NOT_OF_THE_TASK} | kwargs)
        task = built_in_task(info)
    if task is not None:
        return task, notes
    base = same_environment(info)
    simulator = Robosuite(
        env_name=info.env_name, cameras={}, robots=info.robots, controllers=_controllers(info),
        env_kwargs=info.other_kwargs,
    )  # fmt: skip
    horizon = base.horizon if base else max(MIN_HORIZON, round(HORIZON_MARGIN * longest))
    cameras = {key: shape[1:3] for key, shape in images.items() if key.endswith("_image") and len(shape) == 4}
    task, more_notes = _describe(
        _name(info, base), simulator.model_dump_json(), info.rate, horizon, tuple(cameras.items()), base
    )
    return task, [*notes, *more_notes]


@functools.lru_cache(maxsize=8)
def _describe(
    name: str,
    simulator: str,
    rate: float,
    horizon: int,
    cameras: tuple[tuple[str, tuple[int, ...]], ...],
    base: Task | None,
) -> tuple[Task, list[str]]:
    """`describe_environment`, once for files that are opened several times: it makes the environment."""
    from ddp_cli.sim.discovery import describe_environment

    images = {key: Camera(height=size[0], width=size[1]) for key, size in cameras}
    return describe_environment(name, Robosuite(**json.loads(simulator)), rate, horizon, images, base)


def same_environment(info: RecordingInfo) -> Task | None:
    """The built-in task with the environment of a recording, with whatever robots and controllers."""
    return next((task for task in TASKS.values() if task.robosuite.env_name == info.env_name), None)


def _controllers(info: RecordingInfo) -> tuple[dict[str, dict[str, object]], ...]:
    """The settings of each robot's controllers that are not the default; empty if there are none."""
    parts = tuple(controller.parts for controller in info.controllers)
    return parts if any(parts) else ()


def _name(info: RecordingInfo, base: Task | None) -> str:
    """A name such as `two_arm_handover`, `lift_ur5e_joint_position` or `door_custom`."""
    words = [base.name if base else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", info.env_name).lower()]
    if any(robot != "Panda" for robot in info.robots):
        words += [robot.lower() for robot in dict.fromkeys(info.robots)]
    kinds = {controller.kind for controller in info.controllers} - {"OSC_POSE"}
    if kinds:
        words += [kind.lower() for kind in sorted(kinds)]
    elif base:
        words.append("custom")
    return re.sub(r"[^A-Za-z0-9_-]", "", "_".join(words))[:64]
