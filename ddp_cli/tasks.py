"""Tasks: what a step holds (schema.py), and the simulator that it was recorded in, if any.

Three tasks of robosuite are built in; task_file.py reads others. The built-in ones use a single Franka Panda with its
gripper, controlled at 20 Hz by operational-space control of the end-effector pose, and camera images of 84x84;
`with_robot` gives them another arm.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args

from pydantic import AfterValidator, Field

from ddp_cli import choices
from ddp_cli.base_config import BaseConfig
from ddp_cli.errors import ConfigError, SimulatorError, UnknownNameError
from ddp_cli.schema import OBJECT, ActionPart, Camera, Schema, Vector

CAMERAS = {
    "agentview_image": "agentview",
    "robot0_eye_in_hand_image": "robot0_eye_in_hand",
}
"""Image key -> camera of the simulator; the default of a robosuite task."""

FINGERS = "robot0_gripper_qpos"
PROPRIO = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, FINGERS: 2}
"""Proprioception of a Panda, key -> width: end-effector position [m], quaternion (x, y, z, w), finger joints [m]."""

UNITS = {
    "robot0_eef_pos": "m, position of the end effector, world frame",
    "robot0_eef_quat": "quaternion x, y, z, w of the end effector, world frame",
    FINGERS: "m, positions of the finger joints",
}
ROBOTS = {"Panda": 2, "Sawyer": 2, "IIWA": 6, "Jaco": 6, "Kinova3": 6, "UR5e": 6, "XArm7": 6}
"""Arms of robosuite on a fixed base -> number of finger joints of their grippers."""
ROBOSUITE_CAMERA = Camera(height=84, width=84)
ROBOSUITE_RATE = 20.0  # [Hz]
AS_OBSERVED = "as observed by robosuite"  # the unit of everything else

DELTA_METRES, DELTA_RADIANS = 0.05, 0.5
"""The offset of the goal pose that 1.0 in a delta action stands for."""

_MINUS_ONES, _ONES = (-1.0,) * 3, (1.0,) * 3
_GRIPPER = ActionPart(
    name="gripper", width=1, gripper=True, low=(-1.0,), high=(1.0,), normalization="identity",
    unit="1 closes, -1 opens",
)  # fmt: skip
ACTION_PARTS: dict[str, tuple[ActionPart, ...]] = {
    "delta": (
        ActionPart(
            name="position", width=3, representation="delta", normalization="identity", unit="0.05 m, base frame",
            low=_MINUS_ONES, high=_ONES,
        ),
        ActionPart(
            name="rotation", width=3, representation="delta", rotation="axis-angle", normalization="identity",
            unit="0.5 rad, base frame", low=_MINUS_ONES, high=_ONES,
        ),
        _GRIPPER,
    ),
    "absolute": (
        ActionPart(name="position", width=3, representation="absolute", unit="m, world frame"),
        ActionPart(
            name="rotation", width=6, representation="absolute", rotation="rotation-6d", normalization="identity",
            unit="the first two rows of the rotation matrix, world frame",
        ),
        _GRIPPER,
    ),
}  # fmt: skip
"""The actions of robosuite's controller by convention. Absolute: the goal pose of the controller."""

ACTIONS: dict[str, dict[str, str | int]] = {
    "delta": {"convention": "delta", "frame": "base", "rotation": "axis-angle", "dim": 7},
    "absolute": {"convention": "absolute", "frame": "world", "rotation": "rotation-6d", "dim": 10},
}
"""How stores and checkpoints describe these conventions."""

RECORDED = "recorded"
"""The convention of tasks without a simulator: the parts of the schema, as they were recorded."""

ACTION_WIDTHS = {name: sum(part.width for part in parts) for name, parts in ACTION_PARTS.items()}
"""Da of each convention."""

STATE_DIMS = {"lift": 32, "can": 71, "square": 45}
"""Width of the simulator state of the built-in tasks; that of others is read from the simulator."""


def check_robot(name: str) -> str:
    """`name` if it is one of `ROBOTS`; ValueError otherwise."""
    if name not in ROBOTS:
        raise ValueError(f"expected one of {', '.join(ROBOTS)}")
    return name


Robot = Annotated[str, AfterValidator(check_robot)]


class Robosuite(BaseConfig):
    """An environment of robosuite, and which of its cameras and observables the keys of the schema are."""

    key_kind: ClassVar[str] = "key"
    default_hint: ClassVar[str] = "Correct the simulator."

    env_name: str = Field(min_length=1)
    cameras: dict[str, str]
    """Image key -> camera of the simulator."""
    object: dict[str, int] = Field(default_factory=dict)
    """Observable -> width: the parts of the key `object` (state policies, auxiliary loss). Empty: no such key."""
    model_varies: bool = True
    """The model differs between episodes (Lift: cube size; Door: its position), not only the state."""
    robot: Robot = "Panda"

    def to_json(self) -> dict[str, Any]:
        """The form in stores and checkpoints. Earlier versions know no other robot than the default."""
        return self.model_dump(mode="json", exclude={"robot"} if self.robot == "Panda" else None)


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
        return self.name in TASKS

    @property
    def is_variant(self) -> bool:
        """Whether it is a built-in task with any arm."""
        return self.simulator is not None and self in [
            with_robot(task, self.simulator.robot) for task in TASKS.values()
        ]

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
        return STATE_DIMS.get(self.name)

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

    def action_parts(self, convention: str) -> tuple[ActionPart, ...]:
        """The parts of an action: those of the schema as they were recorded, or robosuite's in another convention."""
        return self.schema.action if convention == RECORDED else ACTION_PARTS[convention]

    def to_json(self) -> str | dict[str, Any]:
        """The form in stores and checkpoints: the name of a built-in task, the full description of any other."""
        if self.is_built_in:
            return self.name
        simulator = None if self.simulator is None else self.simulator.to_json()
        return {
            "name": self.name, "schema": self.schema.to_json(), "simulator": simulator, "horizon": self.horizon,
        }  # fmt: skip


def robosuite_task(
    name: str,
    env_name: str,
    *,
    cameras: Mapping[str, str] = CAMERAS,
    low_dim: Mapping[str, int] | None = None,
    object: Mapping[str, int] | None = None,
    model_varies: bool = True,
    horizon: int = 400,
    robot: str = "Panda",
) -> Task:
    """A task of robosuite with one arm, at 20 Hz, with images of 84x84 and delta actions.

    Quaternions are not normalized; `object` is one vector, first among them. `low_dim` are by default the pose of the
    end effector and the finger joints.
    """
    low_dim = PROPRIO | {FINGERS: ROBOTS[robot]} if low_dim is None else low_dim
    parts = dict(object or {})
    vectors = {OBJECT: Vector(width=sum(parts.values()), unit="poses, as observed by robosuite")} if parts else {}
    vectors |= {
        key: Vector(
            width=width,
            unit=UNITS.get(key, AS_OBSERVED) if key != FINGERS or width == PROPRIO[FINGERS] else AS_OBSERVED,
            normalization="identity" if "quat" in key else "range",
        )
        for key, width in low_dim.items()
    }
    schema = Schema(
        rate=ROBOSUITE_RATE,
        cameras=dict.fromkeys(cameras, ROBOSUITE_CAMERA),
        vectors=vectors,
        action=ACTION_PARTS["delta"],
    )
    simulator = Robosuite(
        env_name=env_name, cameras=dict(cameras), object=parts, model_varies=model_varies, robot=robot
    )
    return Task(name, schema, simulator, horizon)


def with_robot(task: Task, robot: str) -> Task:
    """The built-in `task` with another arm, such as `lift_ur5e`; ConfigError if the arm is unknown."""
    simulator = task.robosuite
    if robot not in ROBOTS:
        raise UnknownNameError("robot", robot, ROBOTS)
    if robot == simulator.robot:
        return task
    return robosuite_task(
        f"{task.name}_{robot.lower()}", simulator.env_name, cameras=simulator.cameras, object=simulator.object,
        model_varies=simulator.model_varies, horizon=task.horizon, robot=robot,
    )  # fmt: skip


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
    )
}  # fmt: skip
"""The built-in tasks. The parts of `object` are in the order of the published datasets (robosuite 1.5 reversed it)."""


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


def describe_difference(task: Task, other: Task, ignore: Collection[str] = ()) -> str:
    """What differs in `task` from `other`, as text; empty where they agree. `ignore`: fields that are not compared.

    The order of `object` and of the parts of an action matters, since each is one array; everything else is looked up
    by key. Where one of them has no such key, only the first field of the key is named.
    """
    values, others = _fields(task, ignore), _fields(other, ignore)
    differences = []
    for key in {**values, **others}:
        ours, theirs = values.get(key, {}), others.get(key, {})
        names = {**ours, **theirs}
        differences += [
            f"{key}{name} {ours.get(name, 'absent')} instead of {theirs.get(name, 'absent')}"
            for name in (names if ours and theirs else list(names)[:1])
            if ours.get(name) != theirs.get(name)
        ]
    more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
    return ", ".join(differences[:3]) + more


def _fields(task: Task, ignore: Collection[str]) -> dict[str, dict[str, str]]:
    """The fields of each key of `task`, such as `vectors.robot0_eef_pos`: the one that names it best first, as ""."""
    schema, simulator = task.schema, task.simulator
    single: dict[str, Any] = {"name": task.name}
    if simulator:
        single |= {
            "env_name": simulator.env_name,
            "robot": simulator.robot,
            "object": simulator.object,
            "model_varies": simulator.model_varies,
        }
    single |= {"horizon": task.horizon, "rate": schema.rate}
    fields: dict[str, dict[str, Any]] = {key: {"": value} for key, value in single.items() if key not in ignore}
    for key, camera in schema.cameras.items():
        name = {"": simulator.cameras.get(key)} if simulator else {}
        fields[f"cameras.{key}"] = name | {".shape": camera.shape, ".recorded": camera.recorded, ".fit": camera.fit}
    for key, vector in schema.vectors.items():
        if key != OBJECT or not simulator:
            rest = {f".{name}": getattr(vector, name) for name in ("unit", "names", "normalization")}
            fields[f"vectors.{key}"] = {"": vector.width} | rest
    for i, part in enumerate(schema.action):
        rest = {f".{name}": value for name, value in part.model_dump(exclude={"name", "width"}).items()}
        fields[f"action.{part.name}"] = {"": part.width} | rest | {".index": i}
    return {key: {name: json.dumps(value) for name, value in entry.items()} for key, entry in fields.items()}
