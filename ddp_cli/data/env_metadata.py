"""Environment metadata of a recording, as written by each generation of tools.

robosuite's collector   `env`, `env_info` (JSON: env_name, robots, controller_configs), `repository_version`
robomimic, ddp          `env_args` (JSON: env_name, env_version, env_kwargs: robots, controller_configs, control_freq)

Controller configurations are flat up to robosuite 1.4 (`control_delta`); since 1.5 they list the parts of a body
(`input_type`): see recorded_controllers.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddp_cli.data.recorded_controllers import Controller, read_controllers
from ddp_cli.errors import DataError
from ddp_cli.robots import NOT_OF_THE_TASK
from ddp_cli.tasks import ROBOSUITE_RATE

ROBOSUITE_TYPE = 1  # robomimic's EnvType; 2 is gym, 3 iGibson
MIN_RATE, MAX_RATE = 1.0, 1000.0  # [Hz], of control; a step of physics takes 2 ms
ENV_HINT = 'Expected JSON with "env_name".'

DEFAULTS = (None, "default", "opposed", "single-arm-opposed", {"magnitude": 0.02, "type": "gaussian"})
"""Values of arguments that change nothing: two arms are opposed by default, and this is the noise of initial joints."""
RENAMED = {"mount_types": "base_types"}
"""Arguments of robosuite up to 1.4 -> since 1.5."""


@dataclass(frozen=True)
class RecordingInfo:
    """How a file was recorded. `version` of robosuite is empty where the file lacks it. There is one of `controllers`
    per robot, or none if the file does not describe them.
    """

    tool: str
    env_name: str
    version: str
    kwargs: dict[str, Any]
    controllers: tuple[Controller, ...] = ()
    is_robosuite: bool = True

    @property
    def actions(self) -> str:
        """Action convention: delta or absolute (poses in the world frame, with axis-angle rotations)."""
        return "absolute" if any(controller.is_absolute for controller in self.controllers) else "delta"

    @property
    def robots(self) -> tuple[str, ...]:
        """Names of the robots; empty if they are no names."""
        robots = self.kwargs.get("robots", "Panda")
        robots = robots if isinstance(robots, list) else [robots]
        return tuple(robots) if all(isinstance(robot, str) and robot for robot in robots) else ()

    @property
    def rate(self) -> float:
        """The control rate [Hz]."""
        rate = self.kwargs.get("control_freq", ROBOSUITE_RATE)
        is_rate = isinstance(rate, int | float) and not isinstance(rate, bool) and MIN_RATE <= rate <= MAX_RATE
        return float(rate) if is_rate else 0.0

    @property
    def is_before_1_5(self) -> bool:
        """Whether the recording robosuite is known to be older than 1.5."""
        return bool(self.version) and version_tuple(self.version) < (1, 5)

    @property
    def lite_physics(self) -> bool:
        """Whether the recording robosuite stepped with `lite_physics`, the default since 1.4.2."""
        return version_tuple(self.version) > (1, 4, 1) if self.version else True

    @property
    def other_kwargs(self) -> dict[str, Any]:
        """Arguments of the environment that a task keeps as they are."""
        kwargs = {RENAMED.get(key, key): value for key, value in self.kwargs.items() if key not in NOT_OF_THE_TASK}
        return {
            key: value
            for key, value in kwargs.items()
            if not all(x in DEFAULTS for x in (value if isinstance(value, list) and value else [value]))
        }

    def incompatibilities(self) -> list[str]:
        """Reasons why the recorded environment cannot be made with today's robosuite, or its actions not be stored;
        empty if there are none.
        """
        reasons = []
        if len(self.robots) not in (1, 2):
            reasons.append(f"robots are {self.kwargs['robots']!r}, expected one or two names")
        if not self.rate:
            reasons.append(f"control rate is {self.kwargs['control_freq']!r}, expected {MIN_RATE:g} to {MAX_RATE:g} Hz")
        if self.controllers and len(self.controllers) != len(self.robots):
            reasons.append(f"there are {len(self.controllers)} controllers for {len(self.robots)} robots")
        kinds = {controller.is_absolute for controller in self.controllers}
        if len(kinds) > 1:
            reasons.append("some actions are absolute, some are not")
        return reasons + [reason for controller in self.controllers for reason in controller.obstacles]

    def env_args(self) -> dict[str, Any]:
        """The metadata in robomimic's form."""
        return {"env_name": self.env_name, "env_version": self.version, "type": 1, "env_kwargs": self.kwargs}


def undescribed_recording(env_name: str) -> RecordingInfo:
    """A recording of the environment `env_name` that says nothing about itself."""
    return RecordingInfo("an unknown tool", env_name, "", {})


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
        kwargs = env_info
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
    info = RecordingInfo(tool, name, version, kwargs, is_robosuite=is_robosuite)
    is_old = version_tuple(version) < (1, 5) if version else None
    controllers = read_controllers(kwargs.get("controller_configs"), info.robots, is_old, source)
    return dataclasses.replace(info, controllers=controllers)


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
