"""Environment metadata of a recording, as written by each generation of tools.

robosuite's collector   `env`, `env_info` (JSON: env_name, robots, controller_configs), `repository_version`
robomimic, ddp          `env_args` (JSON: env_name, env_version, env_kwargs: robots, controller_configs, control_freq)

Controller configurations are flat up to robosuite 1.4 (`control_delta`); since 1.5 they list the parts of a body
(`input_type`). 1.5 silently ignores `control_delta`, so it is evaluated here and never passed on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddp_cli.errors import DataError
from ddp_cli.tasks import DELTA_METRES, DELTA_RADIANS, ROBOSUITE_RATE, ROBOTS

OUTPUT_MAX = [DELTA_METRES] * 3 + [DELTA_RADIANS] * 3
"""The controller's goal offset for a delta action of 1.0."""
ROBOSUITE_TYPE = 1  # robomimic's EnvType; 2 is gym, 3 iGibson
ENV_HINT = 'Expected JSON with "env_name".'


@dataclass(frozen=True)
class RecordingInfo:
    """How a file was recorded. `version` of robosuite is empty, and `controller` None, where the file lacks it."""

    tool: str
    env_name: str
    version: str
    kwargs: dict[str, Any]
    controller: dict[str, Any] | None
    """Configuration of the arm's controller, in the keys of robosuite <= 1.4 or 1.5."""
    is_robosuite: bool = True

    @property
    def actions(self) -> str:
        """Action convention: delta or absolute (position, axis-angle, gripper; world frame)."""
        controller = self.controller or {}
        is_absolute = controller.get("input_type", "delta") == "absolute" or not controller.get("control_delta", True)
        return "absolute" if is_absolute else "delta"

    @property
    def robot(self) -> str:
        """The only robot; empty if there are several."""
        robots = self.kwargs.get("robots", "Panda")
        robots = robots if isinstance(robots, list) else [robots]
        return robots[0] if len(robots) == 1 and isinstance(robots[0], str) else ""

    @property
    def lite_physics(self) -> bool:
        """Whether the recording robosuite stepped with `lite_physics`, the default since 1.4.2."""
        return version_tuple(self.version) > (1, 4, 1) if self.version else True

    def incompatibilities(self) -> list[str]:
        """Reasons why the recorded actions would have another effect in the simulator; empty if there are none."""
        reasons = []
        if self.robot not in ROBOTS:
            reasons.append(f"robots are {self.kwargs['robots']!r}, expected one of {', '.join(ROBOTS)}")
        control_freq = self.kwargs.get("control_freq", ROBOSUITE_RATE)
        if control_freq != ROBOSUITE_RATE:
            reasons.append(f"control rate is {control_freq!r} Hz, expected {ROBOSUITE_RATE:g} Hz")
        if self.controller is not None:
            reasons += _controller_incompatibilities(self.controller, self.actions)
        return reasons

    def env_args(self) -> dict[str, Any]:
        """The metadata in robomimic's form."""
        return {"env_name": self.env_name, "env_version": self.version, "type": 1, "env_kwargs": self.kwargs}


def undescribed_recording(env_name: str) -> RecordingInfo:
    """A recording of the environment `env_name` that says nothing about itself."""
    return RecordingInfo("an unknown tool", env_name, "", {}, None)


def version_tuple(text: str) -> tuple[int, ...]:
    """'1.4.1' -> (1, 4, 1); stops at the first part that is not a number."""
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def read_recording_info(attrs: Mapping[str, Any], source: str) -> RecordingInfo:
    """Parses the attributes of the group `data`; DataErrors start with `source`."""
    if "env_args" in attrs:
        env_args = _parse_json(attrs["env_args"], source, "env_args")
        name, version = env_args.get("env_name"), env_args.get("env_version", "")
        kwargs = env_args.get("env_kwargs", {})
        tool = "ddp collect" if "identity" in attrs else "robomimic"
        is_robosuite = env_args.get("type", ROBOSUITE_TYPE) == ROBOSUITE_TYPE
    elif "env" in attrs or "env_info" in attrs:
        is_robosuite = True
        env_info = _parse_json(attrs.get("env_info", "{}"), source, "env_info")
        name = _decode(attrs.get("env", env_info.get("env_name")))
        version = _decode(attrs.get("repository_version", ""))
        kwargs = {key: env_info[key] for key in ("robots", "controller_configs") if key in env_info}
        tool = "robosuite's collector"
    else:
        raise DataError(
            f"{source} does not name its environment (attribute env_args or env of 'data').",
            "Name its task, for example --task lift.",
        )
    if not isinstance(name, str) or not name:
        raise DataError(f"{source} does not name its environment: env_name is {name!r}.", ENV_HINT)
    if not isinstance(kwargs, dict):
        raise DataError(f"{source}: env_kwargs is {kwargs!r}, expected the arguments of the environment.", ENV_HINT)
    version = version if isinstance(version, str) else ""
    controller = _arm_controller(kwargs.get("controller_configs"), source)
    return RecordingInfo(tool, name, version, kwargs, controller, is_robosuite)


def _parse_json(text: Any, source: str, attribute: str) -> dict[str, Any]:
    try:
        value = json.loads(_decode(text))
        if isinstance(value, dict):
            return value
    except (TypeError, ValueError, RecursionError):
        pass
    raise DataError(
        f"{source} does not name its environment: the attribute {attribute} is not a JSON object.", ENV_HINT
    )


def _decode(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _arm_controller(configs: Any, source: str) -> dict[str, Any] | None:
    """The arm's part of `controller_configs`; None if it is absent."""
    if isinstance(configs, list) and len(configs) == 1:
        configs = configs[0]
    if configs is None:
        return None
    arm = configs
    if isinstance(configs, dict) and isinstance(configs.get("body_parts"), dict):
        parts = configs["body_parts"]
        parts = parts["arms"] if isinstance(parts.get("arms"), dict) else parts
        arm = parts.get("right")
    if not isinstance(arm, dict):
        raise DataError(
            f"{source}: controller_configs has no configuration of an arm.", "Expected OSC_POSE of a single arm."
        )
    return arm


def _controller_incompatibilities(controller: Mapping[str, Any], actions: str) -> list[str]:
    if controller.get("type", "OSC_POSE") != "OSC_POSE":
        return [f"controller is {controller['type']!r}, expected OSC_POSE"]
    reasons = []
    if controller.get("impedance_mode", "fixed") != "fixed":
        reasons.append(f"impedance_mode is {controller['impedance_mode']!r}, expected 'fixed'")
    expected_frame = "base" if actions == "delta" else "world"
    frame = controller.get("input_ref_frame", expected_frame)
    if frame != expected_frame:
        reasons.append(f"{actions} actions are in the frame {frame!r}, expected {expected_frame!r}")
    if actions == "delta":
        for key, sign in (("output_max", 1), ("output_min", -1)):
            expected = [sign * x for x in OUTPUT_MAX]
            if controller.get(key, expected) != expected:
                reasons.append(f"{key} is {controller[key]!r}, expected {expected}")
    return reasons
