"""Tasks: what a step holds (schema.py), and the simulator that it was recorded in, if any.

Some tasks of robosuite are built in; task_file.py reads others. The built-in ones use Pandas with their grippers,
controlled at 20 Hz by operational-space control of the end-effector pose; `with_robot` gives those of one arm another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ddp_cli import choices
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

STATE_DIMS = {
    "lift": 32, "can": 71, "square": 45, "transport": 115, "tool_hang": 58, "two_arm_lift": 50, "stack": 45, "door": 23,
}  # fmt: skip
"""Width of the simulator state of the built-in tasks; that of others is read from the simulator."""


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


def _wrist_camera(robot: int) -> dict[str, str]:
    return {f"robot{robot}_eye_in_hand_image": f"robot{robot}_eye_in_hand"}


TASKS = {
    t.name: t
    for t in (
        robosuite_task("lift", "Lift", object={"cube_pos": 3, "cube_quat": 4, "gripper_to_cube_pos": 3}),
        robosuite_task(
            "can", "PickPlaceCan", model_varies=False,
            object={"Can_pos": 3, "Can_quat": 4, "Can_to_robot0_eef_pos": 3, "Can_to_robot0_eef_quat": 4},
        ),
        robosuite_task(
            "square", "NutAssemblySquare", model_varies=False,
            object={
                "SquareNut_pos": 3, "SquareNut_quat": 4,
                "SquareNut_to_robot0_eef_pos": 3, "SquareNut_to_robot0_eef_quat": 4,
            },
        ),
        robosuite_task(
            "transport", "TwoArmTransport", horizon=700, robots=("Panda", "Panda"), frame="world",
            cameras={
                "shouldercamera0_image": "shouldercamera0", **_wrist_camera(0),
                "shouldercamera1_image": "shouldercamera1", **_wrist_camera(1),
            },
            object={
                "payload_pos": 3, "payload_quat": 4, "trash_pos": 3, "trash_quat": 4, "lid_handle_pos": 3,
                "lid_handle_quat": 4, "target_bin_pos": 3, "trash_bin_pos": 3, "payload_in_target_bin": 1,
                "trash_in_trash_bin": 1, "gripper0_to_payload": 3, "gripper0_to_lid_handle": 3,
                "gripper1_to_payload": 3, "gripper1_to_trash": 3,
            },
        ),
        robosuite_task(
            "tool_hang", "ToolHang", horizon=700, size=(240, 240), model_varies=False,
            cameras={"sideview_image": "sideview", **_wrist_camera(0)},
            object={
                "base_pos": 3, "base_quat": 4, "base_to_robot0_eef_pos": 3, "base_to_robot0_eef_quat": 4,
                "frame_pos": 3, "frame_quat": 4, "frame_to_robot0_eef_pos": 3, "frame_to_robot0_eef_quat": 4,
                "tool_pos": 3, "tool_quat": 4, "tool_to_robot0_eef_pos": 3, "tool_to_robot0_eef_quat": 4,
                "frame_is_assembled": 1, "tool_on_frame": 1,
            },
        ),
        robosuite_task(
            "two_arm_lift", "TwoArmLift", robots=("Panda", "Panda"), size=(96, 96), model_varies=False,
            cameras={"agentview_image": "agentview", **_wrist_camera(0), **_wrist_camera(1)},
            object={
                "pot_pos": 3, "pot_quat": 4, "handle0_xpos": 3, "handle1_xpos": 3, "gripper0_to_handle0": 3,
                "gripper1_to_handle1": 3,
            },
        ),
        robosuite_task(
            "stack", "Stack", model_varies=False,
            object={
                "cubeA_pos": 3, "cubeA_quat": 4, "cubeB_pos": 3, "cubeB_quat": 4, "cubeA_to_cubeB": 3,
                "gripper_to_cubeA": 3, "gripper_to_cubeB": 3,
            },
        ),
        robosuite_task(
            "door", "Door",
            object={
                "door_pos": 3, "handle_pos": 3, "hinge_qpos": 1, "door_to_eef_pos": 3, "handle_to_eef_pos": 3,
                "handle_qpos": 1,
            },
        ),
    )
}  # fmt: skip
"""The built-in tasks. The parts of `object` are in the order of the published datasets (robosuite 1.5 reversed it).

Delta actions of the published datasets of `transport` are in the world frame: up to robosuite 1.4 there was no other.
"""


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


def task_of_env(env_name: str) -> Task:
    """The built-in task whose robosuite environment is `env_name`; ConfigError lists the valid ones."""
    for task in TASKS.values():
        if task.robosuite.env_name == env_name:
            return task
    valid = ", ".join(f"{t.robosuite.env_name} ({t.name})" for t in TASKS.values())
    raise ConfigError(
        f"no built-in task uses the environment '{env_name}'.",
        f"Built-in: {valid}. Describe another one with --task file.json.",
    )
