"""Environments of robosuite: robots, controllers, and the parts of the actions that they take.

Keys and parts of one arm have no prefix in an action, and `robot0_` in observations. With two robots, the parts are
called `robot0_position`, `robot1_position`, and so on; the arms of one robot (Baxter) are called `right` and `left`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from ddp_cli.base_config import BaseConfig
from ddp_cli.schema import ActionPart, action_slices

ROBOTS = {"Panda": 2, "Sawyer": 2, "IIWA": 6, "Jaco": 6, "Kinova3": 6, "UR5e": 6, "XArm7": 6}
"""Robots with one arm on a fixed base -> number of finger joints of their grippers. robosuite has others; what they
observe and take is read from the simulator."""

ARM = "right"
"""What robosuite calls the arm of a robot that has one."""
ARMS = ("right", "left")

MOVING_FRAMES = ("IIWA", "XArm7")
"""Robots whose frame of delta actions is on a link that moves. That of the others has the directions of the world
frame where the base is not turned."""

FINGERS = "gripper_qpos"
PROPRIO = {"eef_pos": 3, "eef_quat": 4, FINGERS: 2}
"""Proprioception of a Panda without the prefix of the robot, key -> width."""

UNITS = {
    "eef_pos": "m, position of the end effector, world frame",
    "eef_quat": "quaternion x, y, z, w of the end effector, world frame",
    FINGERS: "m, positions of the finger joints",
}
AS_OBSERVED = "as observed by robosuite"  # the unit of everything else

DELTA_METRES, DELTA_RADIANS = 0.05, 0.5
"""The offset of the goal pose that 1.0 in a delta action stands for."""

_MINUS_ONES, _ONES = (-1.0,) * 3, (1.0,) * 3
GRIPPER = ActionPart(
    name="gripper", width=1, gripper=True, low=(-1.0,), high=(1.0,), normalization="identity",
    unit="1 closes, -1 opens",
)  # fmt: skip


def delta_parts(frame: str = "base") -> tuple[ActionPart, ...]:
    """The action of an arm with robosuite's operational-space control: an offset of the goal pose in `frame` (base or
    world), and the gripper.
    """
    return (
        ActionPart(
            name="position", width=3, representation="delta", normalization="identity", unit=f"0.05 m, {frame} frame",
            low=_MINUS_ONES, high=_ONES,
        ),
        ActionPart(
            name="rotation", width=3, representation="delta", rotation="axis-angle", normalization="identity",
            unit=f"0.5 rad, {frame} frame", low=_MINUS_ONES, high=_ONES,
        ),
        GRIPPER,
    )  # fmt: skip


ABSOLUTE_PARTS = (
    ActionPart(name="position", width=3, representation="absolute", unit="m, world frame"),
    ActionPart(
        name="rotation", width=6, representation="absolute", rotation="rotation-6d", normalization="identity",
        unit="the first two rows of the rotation matrix, world frame",
    ),
    GRIPPER,
)  # fmt: skip
"""The action of an arm as the goal pose of the controller."""

ARM_WIDTHS = {
    name: sum(part.width for part in parts) for name, parts in (("delta", delta_parts()), ("absolute", ABSOLUTE_PARTS))
}
"""Width of an action of one arm with a gripper, by convention."""

_ABSOLUTE = {part.name: part for part in ABSOLUTE_PARTS}
_DELTA = {frame: {part.name: part for part in delta_parts(frame)} for frame in ("base", "world")}


def robot_prefixes(count: int) -> tuple[str, ...]:
    """The prefix of the parts of each robot's action: none if there is one robot."""
    return ("",) if count == 1 else tuple(f"robot{i}_" for i in range(count))


def with_prefix(parts: Sequence[ActionPart], prefix: str) -> tuple[ActionPart, ...]:
    """`parts` with names that begin with `prefix`."""
    return tuple(part.model_copy(update={"name": f"{prefix}{part.name}"}) for part in parts)


def frame_of(part: ActionPart) -> str | None:
    """The frame (base or world) of a part that is a pose's offset by robosuite's default scale; None for other parts.

    Grippers have no frame: they fit any.
    """
    _, kind = split_name(part.name)
    for frame, parts in _DELTA.items():
        if kind in parts and kind != GRIPPER.name and part == parts[kind].model_copy(update={"name": part.name}):
            return frame
    return None


def has_poses(parts: Sequence[ActionPart]) -> bool:
    """Whether every part is an offset of a pose, or a gripper: only these have an absolute form."""
    kinds = [split_name(part.name)[1] for part in parts]
    return kinds.count("position") == kinds.count("rotation") > 0 and all(
        frame_of(part) is not None or (kind == GRIPPER.name and part.gripper)
        for part, kind in zip(parts, kinds, strict=True)
    )


def absolute_parts(parts: Sequence[ActionPart]) -> tuple[ActionPart, ...]:
    """The absolute form of the delta `parts`: goal poses of the controller in the world frame."""
    absolute: list[ActionPart] = []
    for part in parts:
        prefix, kind = split_name(part.name)
        absolute += with_prefix([part if part.gripper else _ABSOLUTE[kind]], "" if part.gripper else prefix)
    return tuple(absolute)


def position_slices(parts: Sequence[ActionPart]) -> list[slice]:
    """The position of each arm in an action of robosuite, in the order of the arms."""
    return [
        values
        for part, values in zip(parts, action_slices(parts), strict=True)
        if part.rotation == "none" and not part.gripper
    ]


def split_name(name: str) -> tuple[str, str]:
    """The prefix of a part, such as `robot1_`, and its name without it."""
    head, separator, kind = name.rpartition("_")
    return head + separator, kind


Text = Annotated[str, Field(min_length=1)]
Overrides = dict[str, dict[str, Any]]


NOT_OF_THE_TASK = {
    "env_name", "robots", "controller_configs", "control_freq", "lite_physics", "horizon", "ignore_done", "hard_reset",
    "seed", "has_renderer", "has_offscreen_renderer", "renderer", "renderer_config", "render_camera",
    "render_collision_mesh", "render_visual_mesh", "render_gpu_device_id", "use_camera_obs", "use_object_obs",
    "camera_names", "camera_heights", "camera_widths", "camera_depths", "camera_segmentations", "reward_shaping",
    "reward_scale", "type",
}  # fmt: skip
"""Arguments of an environment that have no part in what its states and actions mean, or that are said elsewhere."""


def read_robot(values: dict[str, Any]) -> dict[str, Any]:
    """`values` of a description, in which an only robot may be called `robot`, with `robots`."""
    if "robot" not in values or "robots" in values:
        return values
    return {key: value for key, value in values.items() if key != "robot"} | {"robots": (values["robot"],)}


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
    robots: tuple[Text, ...] = ("Panda",)
    """One or two of robosuite's."""
    controllers: tuple[Overrides, ...] = ()
    """For each robot: body part (`right` is an only arm) -> settings of its controller that are not robosuite's default
    for this robot. Empty if none differ."""
    env_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of the environment that are not robosuite's default."""

    @model_validator(mode="before")
    @classmethod
    def _read_robot(cls, values: dict[str, Any]) -> dict[str, Any]:
        return read_robot(values)

    @model_validator(mode="after")
    def _check_robots(self) -> Self:
        if len(self.robots) not in (1, 2):
            raise ValueError(f"robots = {list(self.robots)!r}: expected one or two")
        reserved = sorted(NOT_OF_THE_TASK & self.env_kwargs.keys())
        if reserved:
            raise ValueError(f"env_kwargs has '{reserved[0]}', which is not an argument of a task")
        if len(self.controllers) not in (0, len(self.robots)):
            raise ValueError(f"there are {len(self.controllers)} controllers for {len(self.robots)} robots")
        return self

    @property
    def has_known_actions(self) -> bool:
        """Whether `action` is what the robots take; otherwise only the simulator can tell."""
        settings = {name for parts in self.controllers for part in parts.values() for name in part}
        parts = {part for parts in self.controllers for part in parts}
        return set(self.robots) <= set(ROBOTS) and settings <= {"input_ref_frame"} and parts <= {ARM}

    @property
    def action(self) -> tuple[ActionPart, ...]:
        """The parts of a delta action of all robots, each with one arm and operational-space control."""
        parts: list[ActionPart] = []
        for i, prefix in enumerate(robot_prefixes(len(self.robots))):
            arm = self.controllers[i].get(ARM, {}) if self.controllers else {}
            parts += with_prefix(delta_parts(arm.get("input_ref_frame", "base")), prefix)
        return tuple(parts)

    def to_json(self) -> dict[str, Any]:
        """The form in stores and checkpoints. Earlier versions know the fields without a default only."""
        names = ("robots", "controllers", "env_kwargs")
        return self.model_dump(mode="json", exclude={x for x in names if not self._differs(x)})

    def _differs(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True))
