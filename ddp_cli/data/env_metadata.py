"""What a file says about the robot that was recorded, in the words of each generation of tools.

robosuite's collector   `env`, `env_info` (JSON: env_name, robots, controller_configs), `repository_version`
robomimic, ddp          `env_args` (JSON: env_name, env_version, env_kwargs: robots, controller_configs, control_freq)

A controller is described flat until robosuite 1.4 (`control_delta`), and since 1.5 as the parts of a body
(`input_type`). 1.5 silently ignores `control_delta`, so what it says is read here and never handed on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddp_cli.errors import DataError
from ddp_cli.tasks import CONTROL_HZ, DELTA_METRES, DELTA_RADIANS

SCALE = [DELTA_METRES] * 3 + [DELTA_RADIANS] * 3


@dataclass(frozen=True)
class RecordingInfo:
    """Where a recording comes from. `version` of robosuite is empty, and `controller` None, where it does not say."""

    tool: str
    env_name: str
    version: str
    kwargs: dict[str, Any]
    controller: dict[str, Any] | None
    """Of the arm, in the words of robosuite <= 1.4 or 1.5."""

    @property
    def actions(self) -> str:
        """The convention of the recorded actions: delta or absolute (position, axis-angle, gripper; world frame)."""
        said = self.controller or {}
        absolute = said.get("input_type", "delta") == "absolute" or not said.get("control_delta", True)
        return "absolute" if absolute else "delta"

    @property
    def lite_physics(self) -> bool:
        """Whether robosuite stepped its physics the short way, as it does since 1.4.2."""
        return version_tuple(self.version) > (1, 4, 1) if self.version else True

    def incompatibilities(self) -> list[str]:
        """Why its actions would mean something else here, in words; empty if they would not."""
        found = []
        robots = self.kwargs.get("robots", ["Panda"])
        if robots not in ("Panda", ["Panda"]):
            found.append(f"its robots are {robots!r}, read is a single Panda")
        rate = self.kwargs.get("control_freq", CONTROL_HZ)
        if rate != CONTROL_HZ:
            found.append(f"it was controlled at {rate!r} Hz, read is {CONTROL_HZ}")
        return found + ([] if self.controller is None else _differences(self.controller, self.actions))

    def env_args(self) -> dict[str, Any]:
        """In robomimic's form."""
        return {"env_name": self.env_name, "env_version": self.version, "type": 1, "env_kwargs": self.kwargs}


def version_tuple(text: str) -> tuple[int, ...]:
    """'1.4.1' -> (1, 4, 1); what is no number ends it."""
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def read_recording_info(attrs: Mapping[str, Any], where: str) -> RecordingInfo:
    """The origin that the attributes of `data` tell; `where` begins the messages of DataErrors."""
    if "env_args" in attrs:
        said = _json(attrs["env_args"], where, "env_args")
        name, version, kwargs = said.get("env_name"), said.get("env_version", ""), said.get("env_kwargs", {})
        tool = "robomimic"
    elif "env" in attrs or "env_info" in attrs:
        said = _json(attrs.get("env_info", "{}"), where, "env_info")
        name, version = _text(attrs.get("env", said.get("env_name"))), _text(attrs.get("repository_version", ""))
        kwargs = {key: said[key] for key in ("robots", "controller_configs") if key in said}
        tool = "robosuite's collector"
    else:
        raise DataError(
            f"{where} does not say its environment (attribute env_args or env of 'data').",
            'Expected JSON with "env_name".',
        )
    if not isinstance(name, str) or not name or not isinstance(kwargs, dict):
        raise DataError(
            f"{where} does not say its environment: env_name is {name!r}.", 'Expected JSON with "env_name".'
        )
    version = version if isinstance(version, str) else ""
    return RecordingInfo(tool, name, version, kwargs, _arm(kwargs.get("controller_configs"), where))


def _json(text: Any, where: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_text(text))
        if isinstance(value, dict):
            return value
    except (TypeError, ValueError, RecursionError):
        pass
    raise DataError(
        f"{where} does not say its environment: the attribute {name} is no JSON object.",
        'Expected JSON with "env_name".',
    )


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _arm(configs: Any, where: str) -> dict[str, Any] | None:
    """The arm's part of controller_configs; None where there is none."""
    if isinstance(configs, list) and len(configs) == 1:
        configs = configs[0]
    if configs is None:
        return None
    found = configs
    if isinstance(configs, dict) and isinstance(configs.get("body_parts"), dict):
        parts = configs["body_parts"]
        parts = parts["arms"] if isinstance(parts.get("arms"), dict) else parts
        found = parts.get("right")
    if not isinstance(found, dict):
        raise DataError(f"{where}: controller_configs describes no arm.", "Expected OSC_POSE of a single Panda.")
    return found


def _differences(said: Mapping[str, Any], actions: str) -> list[str]:
    found = []
    if said.get("type", "OSC_POSE") != "OSC_POSE":
        return [f"its controller is {said['type']!r}, read is OSC_POSE"]
    if said.get("impedance_mode", "fixed") != "fixed":
        found.append(f"its impedance_mode is {said['impedance_mode']!r}, read is 'fixed'")
    frame = said.get("input_ref_frame", "base" if actions == "delta" else "world")
    if frame != ("base" if actions == "delta" else "world"):
        found.append(f"its {actions} actions are in the frame {frame!r}")
    if actions == "delta":
        for key, sign in (("output_max", 1), ("output_min", -1)):
            wanted = [sign * x for x in SCALE]
            if said.get(key, wanted) != wanted:
                found.append(f"its {key} is {said[key]!r}, read is {wanted}")
    return found
