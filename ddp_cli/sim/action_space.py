"""The parts of the actions that an environment of robosuite takes, read from its controllers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_cli.robots import GRIPPER, delta_parts, robot_prefixes, with_prefix
from ddp_cli.schema import ActionPart, Representation
from ddp_cli.sim.arms import arm_prefix

OSC = "OperationalSpaceController"
JOINTS = {
    "JointPositionController": ("joint_position", "rad"),
    "JointVelocityController": ("joint_velocity", "rad/s"),
    "JointTorqueController": ("joint_torque", "N m"),
}
"""Class of a controller -> name and unit of its values."""
POSE = (("position", 3, "m"), ("rotation", 3, "rad"))


def action_parts(env: Any) -> tuple[ActionPart, ...]:
    """The parts of a robosuite action of `env`, in its order. Named as those of the built-in tasks where they are the
    same: see robots.py.
    """
    parts: list[ActionPart] = []
    for robot, prefix in zip(env.robots, robot_prefixes(len(env.robots)), strict=True):
        for name, (begin, end) in robot.composite_controller._action_split_indexes.items():
            arm = name.removesuffix("_gripper")
            if end == begin:
                continue
            if name in robot.arms:
                parts += _arm_parts(robot.part_controllers[name], arm_prefix(robot, prefix, name))
            elif arm in robot.arms:
                parts += _gripper_parts(end - begin, arm_prefix(robot, prefix, arm))
            else:
                parts += _plain(f"{prefix}{name}", end - begin, "", -1.0, 1.0)
    return tuple(parts)


def _gripper_parts(width: int, prefix: str) -> tuple[ActionPart, ...]:
    bounds = {"width": width, "low": GRIPPER.low * width, "high": GRIPPER.high * width}
    return with_prefix([GRIPPER if width == 1 else GRIPPER.model_copy(update=bounds)], prefix)


def _arm_parts(controller: Any, prefix: str) -> tuple[ActionPart, ...]:
    """The parts of an arm's controller: gains if they are variable, then the command."""
    low, high = (np.asarray(x, np.float64).reshape(-1) for x in controller.control_limits)
    kind = type(controller).__name__
    if kind in JOINTS:
        name, unit = JOINTS[kind]
        width = len(controller.joint_index)
        is_delta = kind == "JointPositionController" and controller.input_type == "delta"
        scale = _scale(controller, slice(0, width), unit)
        command = _plain(f"{prefix}{name}", width, scale, low[-width:], high[-width:], "delta" if is_delta else "plain")
    else:
        uses_rotation = kind != OSC or controller.use_ori
        standard = delta_parts(controller.input_ref_frame) if kind == OSC else ()
        width = 6 if uses_rotation else 3
        command = ()
        for i, (name, size, unit) in enumerate(POSE[: width // 3]):
            values = slice(3 * i, 3 * i + size)
            frame = f", {controller.input_ref_frame} frame" if kind == OSC else ""
            text = f"{_scale(controller, values, unit)}{frame}" if kind == OSC else ""
            if kind == OSC and standard[i].unit == text:
                command += with_prefix([standard[i]], prefix)
                continue
            [part] = _plain(f"{prefix}{name}", size, text, low[-width:][values], high[-width:][values], "delta")
            command += (part.model_copy(update={"rotation": "axis-angle" if name == "rotation" else "none"}),)
    gains = len(low) - width
    first = _plain(f"{prefix}gains", gains, "", low[:gains], high[:gains]) if gains else ()
    return (*first, *command)


def _scale(controller: Any, values: slice, unit: str) -> str:
    """What 1.0 in an action stands for."""
    scale = (np.asarray(controller.output_max) / controller.input_max).reshape(-1)
    scale = scale[values] if len(scale) > 1 else scale
    texts = [f"{x:g}" for x in scale]
    return f"{texts[0] if len({*texts}) == 1 else ', '.join(texts)} {unit}"


def _plain(
    name: str, width: int, unit: str, low: Any, high: Any, representation: Representation = "plain"
) -> tuple[ActionPart, ...]:
    """A part with limits, which it is not scaled by where they are -1 and 1."""
    low, high = (tuple(np.broadcast_to(np.asarray(x, np.float64), width).tolist()) for x in (low, high))
    is_unit = set(low) == {-1.0} and set(high) == {1.0}
    return (
        ActionPart(
            name=name, width=width, unit=unit, low=low, high=high, representation=representation,
            normalization="identity" if is_unit else "range",
        ),
    )  # fmt: skip
