"""The tasks as data: environment, observations, action, limits. Three are built in, a file describes others.

All share a single Franka Panda with its gripper, controlled at 20 Hz by operational-space control of the
hand's pose, and pictures of 84x84.
Shapes are per time step; images are stored (H, W, 3) and seen by the policy as (3, H, W).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddp_cli.errors import ConfigError, close_match

IMAGE_SIZE = 84  # [pixels], height and width of every camera
CONTROL_HZ = 20

CAMERAS = {
    "agentview_image": "agentview",
    "robot0_eye_in_hand_image": "robot0_eye_in_hand",
}
"""Image key -> name of the simulator's camera, where a task says nothing else."""

OBS = ("image", "state")
"""What a policy may look at: cameras, or the pose of the object."""

PROPRIO = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
"""Low-dimensional key -> width: hand position [m], hand quaternion (x, y, z, w), finger joints [m]."""

ACTION_DIM = 7
"""Delta action: translation (3), rotation as axis-angle (3), gripper (1); each in [-1, 1].
A positive gripper value closes."""

DELTA_METRES, DELTA_RADIANS = 0.05, 0.5
"""The goal offset that 1.0 in a delta action stands for."""

ACTIONS: dict[str, dict[str, str | int]] = {
    "delta": {"convention": "delta", "frame": "base", "rotation": "axis-angle", "dim": ACTION_DIM},
    "absolute": {"convention": "absolute", "frame": "world", "rotation": "rotation-6d", "dim": 10},
}
"""Action conventions, as stores and checkpoints describe them. Absolute: the controller's goal, position
[m] (3), the first two rows of its rotation matrix (6), gripper (1)."""


@dataclass(frozen=True)
class Task:
    """One task. The order of `cameras`, `low_dim` and `object` is the order in which a policy sees them."""

    name: str
    env_name: str
    cameras: dict[str, str] = field(default_factory=CAMERAS.copy, hash=False)
    """Image key -> name of the simulator's camera."""
    low_dim: dict[str, int] = field(default_factory=PROPRIO.copy, hash=False)
    """Observable of the simulator -> width."""
    object: dict[str, int] = field(default_factory=dict, hash=False)
    """Observable -> width: what the key `object` is made of (state policies, auxiliary loss). Empty: no such key."""
    model_varies: bool = True
    """The model differs between episodes (Lift: size of the cube; Door: where it stands), not only the state."""
    horizon: int = 400  # [steps], the longest episode
    state_dim: int | None = None  # built-in tasks only; of others the simulator knows

    @property
    def built_in(self) -> bool:
        return self.name in TASKS

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
        """As stores and checkpoints keep it: the name of a built-in task, all of another."""
        return self.name if self.built_in else self._described()

    def _described(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key in DESCRIBED}


TASKS = {
    t.name: t
    for t in (
        Task(
            "lift", "Lift", state_dim=32, object={"cube_pos": 3, "cube_quat": 4, "gripper_to_cube_pos": 3},
        ),
        Task(
            "can", "PickPlaceCan", state_dim=71, model_varies=False,
            object={"Can_pos": 3, "Can_quat": 4, "Can_to_robot0_eef_pos": 3, "Can_to_robot0_eef_quat": 4},
        ),
        Task(
            "square", "NutAssemblySquare", state_dim=45, model_varies=False,
            object={
                "SquareNut_pos": 3, "SquareNut_quat": 4,
                "SquareNut_to_robot0_eef_pos": 3, "SquareNut_to_robot0_eef_quat": 4,
            },
        ),
    )
}  # fmt: skip
"""The built-in tasks. Their `object` is in the order of the field's datasets (robosuite 1.5 turned it around)."""


def get_task(name: str) -> Task:
    """The built-in task called `name`; ConfigError lists the valid names."""
    if name not in TASKS:
        raise ConfigError(
            f"unknown task '{name}'{close_match(name, TASKS)}",
            f"Valid tasks: {', '.join(TASKS)}, or a file that describes another (--task file.json).",
        )
    return TASKS[name]


def check_obs(name: str) -> None:
    """ConfigError unless `name` is a kind of observations, as `Task.images` and `Task.vectors` take it."""
    if name not in OBS:
        raise ConfigError(f"unknown observations '{name}'{close_match(name, OBS)}", f"Valid: {', '.join(OBS)}.")


def task_of_env(env_name: str) -> Task:
    """The built-in task whose robosuite environment is `env_name`; ConfigError lists the known ones."""
    for task in TASKS.values():
        if task.env_name == env_name:
            return task
    known = ", ".join(f"{t.env_name} ({t.name})" for t in TASKS.values())
    raise ConfigError(
        f"no task for the environment '{env_name}'.",
        f"Known environments: {known}. Describe another with --task file.json.",
    )


# -- tasks that a file describes ------------------------------------------------------------------

DESCRIBED = ("name", "env_name", "cameras", "low_dim", "object", "model_varies", "horizon")
EXAMPLE = '{"name": "door", "env_name": "Door"}'
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # names folders, arrays, modules and graph inputs: no dots
TAKEN = ("object", "action")  # keys of every store
MAX_HORIZON, MAX_WIDTH = 100_000, 1_000


def named_file(text: str) -> Path | None:
    """The file that `--task` names, None if it names a task."""
    return Path(text) if text.lower().endswith(".json") else None


def read_task(text: str) -> Task:
    """The task that `--task` names: a built-in one, or the one that a .json file describes."""
    path = named_file(text)
    return task_from_file(path) if path else get_task(text)


def task_name(text: str) -> str:
    """Only its name, which need not be built in: runs are kept by name."""
    return task_from_file(Path(text)).name if named_file(text) else text


def task_from_file(path: Path) -> Task:
    """The task described by a JSON file; ConfigError names the value at fault and what would be valid."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no file '{path}'.", f"Write one, for example {EXAMPLE}, or name a task.") from None
    except (ValueError, OSError, RecursionError) as e:
        raise ConfigError(f"'{path}' is not JSON: {e}.", f"Write {EXAMPLE}.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"'{path}' holds no JSON object.", f"Write {EXAMPLE}.")
    return task_from_json(value, f"'{path}'")


def task_from_json(value: object, where: str = "the task") -> Task:
    """The task that `value` says, as `Task.to_json` writes it; `where` begins the messages about faults."""
    if isinstance(value, str):
        return get_task(value)
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}.", f"Give a name ({', '.join(TASKS)}) or describe it: {EXAMPLE}.")
    _check_names(value, where)
    task = Task(**value)
    _check_cameras(task.cameras, where)
    _check_widths("low_dim", task.low_dim, where)
    _check_widths("object", task.object, where)
    taken = next((key for key in task.low_dim if key in TAKEN), None)
    if taken:
        raise ConfigError(f"{where}: low_dim has the key '{taken}', which has a meaning of its own.", "Leave it out.")
    if not isinstance(task.model_varies, bool):
        raise ConfigError(f"{where}: model_varies is {task.model_varies!r}.", "Write true or false.")
    if not _whole(task.horizon, MAX_HORIZON):
        raise ConfigError(f"{where}: horizon is {task.horizon!r}.", f"Give a number of steps, 1 to {MAX_HORIZON}.")
    return task


def _check_names(value: dict[str, Any], where: str) -> None:
    for key in value:
        if key not in DESCRIBED:
            close = close_match(key, DESCRIBED)
            raise ConfigError(f"{where}: unknown key '{key}'{close}", f"Valid: {', '.join(DESCRIBED)}.")
    for key in ("name", "env_name"):
        if not isinstance(value.get(key), str) or not value[key]:
            what = f"{key} is {value[key]!r}" if key in value else f"no '{key}'"
            raise ConfigError(f"{where}: {what}.", f"A task has at least {EXAMPLE}.")
    if not KEY.fullmatch(value["name"]):
        raise ConfigError(
            f"{where}: name is {value['name']!r}.", "Folders bear it: use at most 64 letters, digits, _ and -."
        )
    if value["name"].lower() in TASKS:
        raise ConfigError(f"{where}: '{value['name']}' is the name of a built-in task.", "Choose another name.")


def _check_cameras(cameras: object, where: str) -> None:
    hint = f'Write image keys and cameras of the simulator, for example {{"{next(iter(CAMERAS))}": "agentview"}}.'
    if not isinstance(cameras, dict) or not cameras:
        raise ConfigError(f"{where}: cameras is {cameras!r}.", hint)
    for key, camera in cameras.items():
        if not KEY.fullmatch(key) or not key.endswith("_image"):
            raise ConfigError(f"{where}: cameras has the key '{key}'.", "Image keys are words that end in _image.")
        if not isinstance(camera, str) or not camera:
            raise ConfigError(f"{where}: cameras.{key} is {camera!r}.", hint)


def _check_widths(name: str, widths: object, where: str) -> None:
    hint = 'Write observables of the simulator and their widths, for example {"robot0_eef_pos": 3}.'
    if not isinstance(widths, dict):
        raise ConfigError(f"{where}: {name} is {widths!r}.", hint)
    for key, width in widths.items():
        if not KEY.fullmatch(key) or key.endswith("_image"):
            raise ConfigError(f"{where}: {name} has the key '{key}'.", hint)
        if not _whole(width, MAX_WIDTH):
            raise ConfigError(f"{where}: {name}.{key} is {width!r}.", f"Give its width, 1 to {MAX_WIDTH}.")


def _whole(value: object, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest  # True is an int, too


def difference(found: Task, wanted: Task, but: Iterable[str] = ()) -> str:
    """What `found` says otherwise than `wanted`, in words; empty where they agree. `but`: fields not compared.

    The order of `object` counts, it is one array; all else is found by key, and a policy keeps its own order.
    """
    one, other = _flat(found, but), _flat(wanted, but)
    words = [
        f"{key} {one.get(key, 'absent')} instead of {other.get(key, 'absent')}"
        for key in {**one, **other}
        if one.get(key) != other.get(key)
    ]
    more = f", and {len(words) - 3} more" if len(words) > 3 else ""
    return ", ".join(words[:3]) + more


def _flat(task: Task, but: Iterable[str]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in task._described().items():
        if key not in but:
            by_key = isinstance(value, dict) and key != "object"
            parts = {f"{key}.{k}": v for k, v in value.items()} if by_key else {key: value}
            flat |= {k: json.dumps(v) for k, v in parts.items()}
    return flat


def check_same_task(found: Task, text: str | None, where: Path) -> None:
    """ConfigError if `--task` names a file that describes another task than `found`, that of `where`."""
    path = named_file(text) if text else None
    differs = difference(found, task_from_file(path)) if path else ""
    if differs:
        raise ConfigError(
            f"'{where}' is of another task than '{path}' describes: {differs}.",
            "It keeps its task: leave --task out, or train a new policy.",
        )
