"""Tasks: what a step holds (schema.py), and the simulator that it was recorded in, if any.

Some tasks of robosuite are built in, see built_in_tasks.py; task_file.py reads others. `with_robot` gives a built-in
task of one arm another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ddp_cli import choices
from ddp_cli.built_in_tasks import BUILT_IN_TASKS, STATE_DIMS
from ddp_cli.errors import ConfigError, SimulatorError, UnknownNameError
from ddp_cli.robots import (
    ARM,
    AS_OBSERVED,
    FINGERS,
    PROPRIO,
    ROBOTS,
    UNITS,
    Robosuite,
    absolute_parts,
    frame_of,
    has_poses,
)
from ddp_cli.schema import OBJECT, ActionPart, Camera, Schema, Vector

CAMERAS = {
    "agentview_image": "agentview",
    "robot0_eye_in_hand_image": "robot0_eye_in_hand",
}
"""Image key -> camera of the simulator; the default of a robosuite task."""

ROBOSUITE_CAMERA = Camera(height=84, width=84)
ROBOSUITE_RATE = 20.0  # [Hz]

RECORDED = "recorded"
"""The convention of tasks without a simulator, and of controllers of other values than poses: as they were recorded."""


@dataclass(frozen=True)
class Task:
    """One task. `horizon` is the maximum length of an episode [steps]."""

    name: str
    schema: Schema
    simulator: Robosuite | None = None
    horizon: int = 400

    def __hash__(self) -> int:
        return hash((self.name, self.horizon))

    @property
    def is_built_in(self) -> bool:
        return self == TASKS.get(self.name)

    @property
    def is_variant(self) -> bool:
        """Whether it is a built-in task with any arm."""
        if self.is_built_in:
            return True
        robot = self.simulator.robots[0] if self.simulator else ""
        return robot in ROBOTS and self in [with_robot(task, robot) for task in TASKS.values() if task.n_robots == 1]

    @property
    def n_robots(self) -> int:
        """Robots of the simulator."""
        return len(self.robosuite.robots)

    @property
    def robosuite(self) -> Robosuite:
        """The simulator; SimulatorError if there is none."""
        if self.simulator is None:
            raise SimulatorError(
                f"the task '{self.name}' has no simulator.",
                "Only tasks of robosuite can be rendered and replayed. Add --env ID to run episodes in a Gymnasium "
                "environment.",
            )
        return self.simulator

    @property
    def state_dim(self) -> int | None:
        """Width of the simulator state; None for tasks that are not built in."""
        return STATE_DIMS[self.name] if self.is_built_in else None

    @property
    def object_dim(self) -> int:
        """Width of the key `object`, 0 where there is none."""
        return self.schema.vectors[OBJECT].width if OBJECT in self.schema.vectors else 0

    @property
    def low_dim(self) -> dict[str, int]:
        """Width of every vector but `object`."""
        return self.vectors("image")

    def images(self, obs: str) -> dict[str, Camera]:
        """The cameras of an `image` or `state` policy, in network order."""
        return dict(self.schema.cameras) if obs == "image" else {}

    def vectors(self, obs: str) -> dict[str, int]:
        """Vectors and their widths of an `image` or `state` policy, in network order."""
        return {key: v.width for key, v in self.schema.vectors.items() if obs == "state" or key != OBJECT}

    @property
    def conventions(self) -> tuple[str, ...]:
        """Conventions that its actions can have. Only offsets of poses have an absolute form."""
        if self.simulator is None or not has_poses(self.schema.action):
            return (RECORDED,)
        return ("delta", "absolute")

    def action_parts(self, convention: str) -> tuple[ActionPart, ...]:
        """The parts of an action in one of the `conventions`: as they were recorded, or as goals."""
        return absolute_parts(self.schema.action) if convention == "absolute" else self.schema.action

    def describe_action(self, convention: str) -> dict[str, str | int]:
        """How stores and checkpoints describe actions in one of the `conventions`."""
        dim = sum(part.width for part in self.action_parts(convention))
        if convention == RECORDED:
            return {"convention": RECORDED, "dim": dim}
        frames = {frame for part in self.schema.action if (frame := frame_of(part))}
        frame, rotation = "world", "rotation-6d"
        if convention == "delta":
            frame, rotation = " and ".join(sorted(frames)), "axis-angle"
        return {"convention": convention, "frame": frame, "rotation": rotation, "dim": dim}

    def to_json(self) -> str | dict[str, Any]:
        """The form in stores and checkpoints: the name of a built-in task, the full description of any other."""
        if self.is_built_in:
            return self.name
        simulator = None if self.simulator is None else self.simulator.to_json()
        return {
            "name": self.name, "schema": self.schema.to_json(), "simulator": simulator, "horizon": self.horizon,
        }  # fmt: skip


def proprioception(robots: Sequence[str]) -> dict[str, int]:
    """What is observed of `robots` by default, key -> width: the pose of the end effector, and the finger joints."""
    return {
        f"robot{i}_{key}": ROBOTS[robot] if key == FINGERS else width
        for i, robot in enumerate(robots)
        for key, width in PROPRIO.items()
    }


def object_vector(parts: Mapping[str, int]) -> Vector:
    """The observables `parts`, name -> width, as one vector."""
    return Vector(width=sum(parts.values()), unit="poses, as observed by robosuite")


def observable_vector(key: str, width: int) -> Vector:
    """An observable of robosuite. Quaternions are not normalized."""
    name = key[len("robot0_") :] if key.startswith(("robot0_", "robot1_")) else ""
    is_known = PROPRIO.get(name) == width
    return Vector(
        width=width,
        unit=UNITS[name] if is_known else AS_OBSERVED,
        normalization="identity" if "quat" in key else "range",
    )


def robosuite_task(
    name: str,
    env_name: str,
    *,
    cameras: Mapping[str, str] = CAMERAS,
    low_dim: Mapping[str, int] | None = None,
    object: Mapping[str, int] | None = None,
    model_varies: bool = True,
    horizon: int = 400,
    robots: Sequence[str] = ("Panda",),
    size: tuple[int, int] = (84, 84),
    frame: str = "base",
) -> Task:
    """A task of robosuite at 20 Hz, with images of `size` (height, width) and delta actions in `frame`.

    `object` is one vector, first among them. `low_dim` are by default the poses of the end effectors and the finger
    joints.
    """
    parts = dict(object or {})
    vectors = {OBJECT: object_vector(parts)} if parts else {}
    low_dim = proprioception(robots) if low_dim is None else low_dim
    simulator = Robosuite(
        env_name=env_name, cameras=dict(cameras), object=parts, model_varies=model_varies, robots=tuple(robots),
        controllers=() if frame == "base" else ({ARM: {"input_ref_frame": frame}},) * len(robots),
    )  # fmt: skip
    schema = Schema(
        rate=ROBOSUITE_RATE,
        cameras=dict.fromkeys(cameras, Camera(height=size[0], width=size[1])),
        vectors=vectors | {key: observable_vector(key, width) for key, width in low_dim.items()},
        action=simulator.action,
    )
    return Task(name, schema, simulator, horizon)


def with_robot(task: Task, robot: str) -> Task:
    """The built-in `task` with another arm, such as `lift_ur5e`; ConfigError if it is unknown, or the task has two."""
    simulator = task.robosuite
    if task.n_robots > 1:
        raise ConfigError(
            f"the task '{task.name}' has {task.n_robots} arms, both {simulator.robots[0]}.", "Omit --robot."
        )
    if robot not in ROBOTS:
        raise UnknownNameError("robot", robot, ROBOTS)
    if robot == simulator.robots[0]:
        return task
    camera = next(iter(task.schema.cameras.values()))
    return robosuite_task(
        f"{task.name}_{robot.lower()}", simulator.env_name, cameras=simulator.cameras, object=simulator.object,
        model_varies=simulator.model_varies, horizon=task.horizon, robots=(robot,), size=(camera.height, camera.width),
    )  # fmt: skip


TASKS = {name: robosuite_task(name, **settings) for name, settings in BUILT_IN_TASKS.items()}
"""The built-in tasks."""


def get_task(name: str) -> Task:
    """The built-in task called `name`; UnknownNameError lists the valid names."""
    if name not in TASKS:
        valid = f"Valid tasks: {', '.join(TASKS)}, or a file that describes another (--task file.json)."
        raise UnknownNameError("task", name, TASKS, valid)
    return TASKS[name]


def check_obs(name: str) -> None:
    """UnknownNameError unless `name` is a kind of observations that `Task.images` and `Task.vectors` accept."""
    if name not in get_args(choices.Obs):
        raise UnknownNameError("observations", name, get_args(choices.Obs))
