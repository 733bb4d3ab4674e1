"""Controllers of recorded robots, in the terms of robosuite 1.5: what differs from its default.

Up to robosuite 1.4, delta actions of operational-space control are in the world frame. Since 1.5 they are in that of
the robot's base, unless the configuration says otherwise. 1.5 silently ignores `control_delta`, so it is evaluated here
and never passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddp_cli.errors import DataError
from ddp_cli.robots import ARM, ARMS, DELTA_METRES, DELTA_RADIANS, MOVING_FRAMES, ROBOTS

OSC_POSE, OSC_POSITION = "OSC_POSE", "OSC_POSITION"
TYPES = (OSC_POSE, OSC_POSITION, "IK_POSE", "JOINT_POSITION", "JOINT_VELOCITY", "JOINT_TORQUE")

OUTPUT_MAX = [DELTA_METRES] * 3 + [DELTA_RADIANS] * 3
DEFAULT_OSC: dict[str, Any] = {
    "type": OSC_POSE, "input_max": 1, "input_min": -1, "output_max": OUTPUT_MAX, "output_min": [-x for x in OUTPUT_MAX],
    "kp": 150, "damping_ratio": 1, "impedance_mode": "fixed", "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "interpolation": None, "goal_update_mode": "achieved", "input_ref_frame": "base",
    "gripper": {"type": "GRIP"},
}  # fmt: skip
"""The default of every arm."""
UNUSED = ("input_type", "control_delta", "kp_limits", "damping_ratio_limits", "ramp_ratio", "control_ori")
"""Settings that change nothing where the others are the default, or that are evaluated here."""
SCALE = ("input_max", "input_min", "output_max", "output_min", "input_ref_frame")
"""Settings that absolute actions do not use."""
NUMERIC = ("input_max", "input_min", "output_max", "output_min", "kp", "damping_ratio")
RENAMED = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}


@dataclass(frozen=True)
class Controller:
    """The controllers of one robot: body part -> settings that are not robosuite's default.

    `is_absolute`: actions are goal poses. `obstacles`: why robosuite 1.5 cannot do what was recorded.
    """

    kind: str
    parts: dict[str, dict[str, Any]]
    is_absolute: bool = False
    obstacles: tuple[str, ...] = ()


def read_controllers(configs: Any, robots: Sequence[str], is_old: bool | None, source: str) -> tuple[Controller, ...]:
    """The controllers of `robots` from the argument `controller_configs` of an environment, which is a configuration,
    or one for each robot; empty if it is None. `is_old`: recorded with robosuite up to 1.4; None if this is not known.
    DataErrors start with `source`.
    """
    if configs is None:
        if not is_old:
            return ()
        configs = {"type": OSC_POSE}
    listed = configs if isinstance(configs, list) else [configs] * max(1, len(robots))
    names = [*robots, *[""] * len(listed)]
    return tuple(
        _read(config, robot, len(listed), _is_flat(config) if is_old is None else is_old, source)
        for config, robot in zip(listed, names, strict=False)
    )


def _is_flat(config: Any) -> bool:
    return isinstance(config, dict) and "body_parts" not in config


def _read(config: Any, robot: str, count: int, is_old: bool, source: str) -> Controller:
    parts = _body_parts(config)
    arms = [name for name in ARMS if isinstance(parts.get(name), dict)]
    if not arms:
        raise DataError(f"{source}: controller_configs has no configuration of an arm.", f"Expected {OSC_POSE}.")
    obstacles: list[str] = []
    if robot in ROBOTS:  # robosuite leaves out the parts that a robot lacks
        parts, arms = {ARM: parts[arms[0]]}, [ARM]
        if not _is_flat(config) and config.get("type", "BASIC") != "BASIC":
            obstacles.append(f"the composite controller is {config['type']!r}, expected 'BASIC'")
    settings = {
        name: _arm_settings(part, robot, count, is_old, obstacles) if name in arms else part
        for name, part in parts.items()
    }
    arm = parts[arms[0]]
    return Controller(
        str(arm.get("type", OSC_POSE)),
        {name: values for name, values in settings.items() if values},
        _is_absolute(arm),
        tuple(obstacles),
    )


def _body_parts(config: Any) -> dict[str, Any]:
    """The configuration of each body part; `right` is the arm of flat ones."""
    if not isinstance(config, dict) or not config:
        return {}
    parts = config.get("body_parts")
    if not isinstance(parts, dict):
        return {} if "body_parts" in config else {ARM: config}
    arms = parts.get("arms")
    return {key: value for key, value in parts.items() if key != "arms"} | (arms if isinstance(arms, dict) else {})


def _is_absolute(arm: dict[str, Any]) -> bool:
    """Whether the actions of an arm are goal poses."""
    return arm.get("type", OSC_POSE) == OSC_POSE and _has_goals(arm)


def _has_goals(arm: dict[str, Any]) -> bool:
    return arm.get("input_type", "delta") == "absolute" or not arm.get("control_delta", True)


def _arm_settings(arm: dict[str, Any], robot: str, count: int, is_old: bool, obstacles: list[str]) -> dict[str, Any]:
    """The settings of an arm that differ from the default. Adds to `obstacles`."""
    settings = {RENAMED.get(key, key): value for key, value in arm.items()}
    kind = settings.setdefault("type", OSC_POSE)
    for key in NUMERIC:
        if not _is_numeric(settings.get(key)) or (key == "input_max" and not np.all(settings.get(key, 1))):
            obstacles.append(f"{key} is {settings[key]!r}, expected a number or a list of numbers")
            return {}
    if kind not in TYPES:
        obstacles.append(f"controller is {kind!r}, expected one of {', '.join(TYPES)}")
        return {}
    if kind not in (OSC_POSE, OSC_POSITION):
        return {key: value for key, value in settings.items() if key != "control_delta"}
    if _is_absolute(settings):
        if settings.setdefault("input_ref_frame", "world" if is_old else "base") != "world":
            obstacles.append(f"absolute actions are in the frame {settings['input_ref_frame']!r}, expected 'world'")
        settings = {key: value for key, value in settings.items() if key not in SCALE}
    else:
        frame = settings.get("input_ref_frame", "world" if is_old else "base")
        if frame not in ("base", "world"):
            obstacles.append(f"delta actions are in the frame {frame!r}, expected 'base' or 'world'")
        # With one arm the base is not turned: both frames have the same directions, unless the base moves.
        is_same = count == 1 and robot in ROBOTS and robot not in MOVING_FRAMES
        settings["input_ref_frame"] = "base" if is_same else frame
    if settings.get("position_limits") is not None or settings.get("orientation_limits") is not None:
        obstacles.append("position_limits and orientation_limits are not implemented in robosuite 1.5")
    unused = UNUSED if settings.get("impedance_mode", "fixed") == "fixed" and not settings.get("interpolation") else ()
    kept = {key: value for key, value in settings.items() if key not in (*unused, "control_delta", "input_type")}
    if kind == OSC_POSITION:
        goals = {"input_type": "absolute", "input_ref_frame": "world"} if _has_goals(settings) else {}
        return {key: value for key, value in kept.items() if key != "gripper"} | goals
    return {key: value for key, value in kept.items() if key not in DEFAULT_OSC or not _equal(value, DEFAULT_OSC[key])}


def _is_numeric(value: Any) -> bool:
    """Whether a setting is a finite number, a list of such, or missing."""
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(x, int | float) and not isinstance(x, bool) and np.isfinite(x) for x in numbers)


def _equal(value: Any, default: Any) -> bool:
    """Whether two settings are equal, where a number stands for a list of it."""
    if value is None or default is None:
        return value is default
    try:
        return bool(np.all(np.equal(np.asarray(value, np.float64), np.asarray(default, np.float64))))
    except (TypeError, ValueError):
        return bool(value == default)
