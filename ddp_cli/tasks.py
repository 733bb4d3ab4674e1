"""Tasks as data: environment, cameras, observations and their widths, length of an episode. Three are built in;
task_file.py reads others.

All use a single Franka Panda with its gripper, controlled at 20 Hz by operational-space control of the end-effector
pose, and camera images of 84x84.
Shapes are per time step; images are stored (H, W, 3) and passed to the policy as (3, H, W).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, get_args

from pydantic import AfterValidator, Field, StrictBool

from ddp_cli import choices
from ddp_cli.base_config import BaseConfig
from ddp_cli.errors import ConfigError, UnknownNameError

IMAGE_SIZE = 84  # [pixels], height and width of every camera
CONTROL_HZ = 20

CAMERAS = {
    "agentview_image": "agentview",
    "robot0_eye_in_hand_image": "robot0_eye_in_hand",
}
"""Image key -> camera of the simulator; the default of a task."""

PROPRIO = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
"""Proprioception, key -> width: end-effector position [m], quaternion (x, y, z, w), finger joints [m]."""

ACTION_DIM = 7
"""Delta action: translation (3), rotation as axis-angle (3), gripper (1); each in [-1, 1].
A positive gripper value closes."""

DELTA_METRES, DELTA_RADIANS = 0.05, 0.5
"""The offset of the goal pose that 1.0 in a delta action stands for."""

ACTIONS: dict[str, dict[str, str | int]] = {
    "delta": {"convention": "delta", "frame": "base", "rotation": "axis-angle", "dim": ACTION_DIM},
    "absolute": {"convention": "absolute", "frame": "world", "rotation": "rotation-6d", "dim": 10},
}
"""Action conventions, as stores and checkpoints describe them. Absolute: the goal pose of the controller, position
[m] (3), the first two rows of its rotation matrix (6), gripper (1)."""

STATE_DIMS = {"lift": 32, "can": 71, "square": 45}
"""Width of the simulator state of the built-in tasks; that of others is read from the simulator."""

TASK_EXAMPLE = '{"name": "door", "env_name": "Door"}'
RESERVED_KEYS = ("object", "action")  # arrays that a store adds itself
MAX_HORIZON, MAX_WIDTH = 100_000, 1_000


def _check_identifier(text: str) -> str:
    # Identifiers name folders, arrays, modules and graph inputs: no dots.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise ValueError("use at most 64 letters, digits, '_' and '-', the first a letter or digit")
    return text


def _check_image_key(text: str) -> str:
    if not text.endswith("_image"):
        raise ValueError("keys of images end in '_image'")
    return _check_identifier(text)


def _check_observable(text: str) -> str:
    if text.endswith("_image"):
        raise ValueError("keys that end in '_image' are cameras")
    return _check_identifier(text)


def _check_not_reserved(text: str) -> str:
    if text in RESERVED_KEYS:
        raise ValueError("a store uses this key itself")
    return text


Identifier = Annotated[str, AfterValidator(_check_identifier)]
ImageKey = Annotated[str, AfterValidator(_check_image_key)]
Observable = Annotated[str, AfterValidator(_check_observable)]
LowDimKey = Annotated[Observable, AfterValidator(_check_not_reserved)]
NonEmpty = Annotated[str, Field(min_length=1)]
Width = Annotated[int, Field(strict=True, ge=1, le=MAX_WIDTH)]

WIDTHS_DESCRIPTION = (
    f'observables of the simulator and their widths, 1 to {MAX_WIDTH}, for example {{"robot0_eef_pos": 3}}'
)


class Task(BaseConfig):
    """One task. The order of `cameras`, `low_dim` and `object` is the order in which a policy receives them."""

    key_kind: ClassVar[str] = "key"
    default_hint: ClassVar[str] = f"A task has at least {TASK_EXAMPLE}."

    name: Identifier
    env_name: NonEmpty
    cameras: dict[ImageKey, NonEmpty] = Field(
        default_factory=CAMERAS.copy,
        min_length=1,
        description='image keys and cameras of the simulator, for example {"agentview_image": "agentview"}',
    )
    """Image key -> camera of the simulator."""
    low_dim: dict[LowDimKey, Width] = Field(default_factory=PROPRIO.copy, description=WIDTHS_DESCRIPTION)
    """Observable of the simulator -> width."""
    object: dict[Observable, Width] = Field(default_factory=dict, description=WIDTHS_DESCRIPTION)
    """Observable -> width: the parts of the key `object` (state policies, auxiliary loss). Empty: no such key."""
    model_varies: Annotated[StrictBool, Field(description="true or false")] = True
    """The model differs between episodes (Lift: cube size; Door: its position), not only the state."""
    horizon: Annotated[
        int, Field(strict=True, ge=1, le=MAX_HORIZON, description=f"a number of steps, 1 to {MAX_HORIZON}")
    ] = 400
    """Maximum length of an episode [steps]."""

    def __hash__(self) -> int:
        return hash((self.name, self.env_name, self.model_varies, self.horizon))

    @property
    def is_built_in(self) -> bool:
        return self.name in TASKS

    @property
    def state_dim(self) -> int | None:
        """Width of the simulator state; None for tasks that are not built in."""
        return STATE_DIMS.get(self.name)

    @property
    def object_dim(self) -> int:
        """Width of the key `object`, 0 where there is none."""
        return sum(self.object.values())

    def images(self, obs: str) -> dict[str, str]:
        """Image keys and cameras of an `image` or `state` policy, in network order."""
        return dict(self.cameras) if obs == "image" else {}

    def vectors(self, obs: str) -> dict[str, int]:
        """Low-dimensional keys and widths of an `image` or `state` policy, in network order."""
        first = {"object": self.object_dim} if obs == "state" and self.object else {}
        return {**first, **self.low_dim}

    def to_json(self) -> str | dict[str, Any]:
        """The form in stores and checkpoints: the name of a built-in task, the full description of any other."""
        return self.name if self.is_built_in else self.model_dump()


TASKS = {
    t.name: t
    for t in (
        Task(name="lift", env_name="Lift", object={"cube_pos": 3, "cube_quat": 4, "gripper_to_cube_pos": 3}),
        Task(
            name="can", env_name="PickPlaceCan", model_varies=False,
            object={"Can_pos": 3, "Can_quat": 4, "Can_to_robot0_eef_pos": 3, "Can_to_robot0_eef_quat": 4},
        ),
        Task(
            name="square", env_name="NutAssemblySquare", model_varies=False,
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
        if task.env_name == env_name:
            return task
    valid = ", ".join(f"{t.env_name} ({t.name})" for t in TASKS.values())
    raise ConfigError(
        f"no built-in task uses the environment '{env_name}'.",
        f"Built-in: {valid}. Describe another one with --task file.json.",
    )


def describe_difference(task: Task, other: Task, ignore: Collection[str] = ()) -> str:
    """What differs in `task` from `other`, as text; empty where they agree. `ignore`: fields that are not compared.

    The order of `object` matters, since it is one array; everything else is looked up by key.
    """
    values, others = _flatten(task, ignore), _flatten(other, ignore)
    differences = [
        f"{key} {values.get(key, 'absent')} instead of {others.get(key, 'absent')}"
        for key in {**values, **others}
        if values.get(key) != others.get(key)
    ]
    more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
    return ", ".join(differences[:3]) + more


def _flatten(task: Task, ignore: Collection[str]) -> dict[str, str]:
    """`task` with a key per entry of its dictionaries (`low_dim.robot0_eef_pos`), except those of `object`."""
    flat: dict[str, str] = {}
    for key, value in task.model_dump(exclude=set(ignore)).items():
        if isinstance(value, dict) and key != "object":
            flat |= {f"{key}.{name}": json.dumps(entry) for name, entry in value.items()}
        else:
            flat[key] = json.dumps(value)
    return flat
