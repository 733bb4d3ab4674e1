"""A robot that `ddp run` controls: a class with four methods, in any module.

    class MyRobot:
        def __init__(self):                     # arguments: ddp run --robot-arg KEY=VALUE
            self.arm, self.camera = connect()

        def reset(self):                        # before each episode: move to where it starts
            self.arm.move_home()

        def observe(self):                      # at every control step: the keys of the policy
            return {"top": self.camera.latest(), "state": self.arm.joint_positions()}

        def command(self, action):              # (Da,), within the limits of the policy
            self.arm.servo_to(action)

        def stop(self):                         # at the end, after an error, on Ctrl-C; may come from another thread
            self.arm.hold()

`observe` may add STAMP, when the observation was taken, in seconds of time.monotonic(). Optional methods:

    takeover()  the action (Da,) of an operator who is in control in this step, otherwise None; it is not limited
    outcome()   True or False at the end of an episode: whether it succeeded; None before
    start()     the action (Da,) that keeps the robot where it is, to be held while a policy of goals is late
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddp_cli.action_limits import Array
from ddp_cli.errors import ConfigError, DdpError, UnknownNameError, describe_exception
from ddp_cli.tasks import Task
from ddp_cli.user_modules import import_user_module

ENTRY_POINTS = "ddp.robots"
STAMP = "stamp"
MOCK, SIM = "mock", "sim"
METHODS = ("observe", "command", "reset", "stop")


class Robot(Protocol):
    """What `ddp run` controls."""

    def observe(self) -> Mapping[str, Any]:
        """The current observation {key: array}."""

    def command(self, action: Array) -> None:
        """Execute `action` (Da,) during the next control period. Returns at once."""

    def reset(self) -> None:
        """Start an episode."""

    def stop(self) -> None:
        """Stop all motion. May be called at any time, by another thread, and repeatedly."""


def make_robot(name: str, arguments: Mapping[str, Any]) -> Robot:
    """The robot `name`: MODULE:CLASS, or an entry point of the group `ddp.robots`.

    DdpError if there is none, if it cannot be constructed with `arguments`, or if a method is missing.
    """
    factory = _import(*name.split(":", 1)) if ":" in name else _find_entry_point(name)
    try:
        robot = factory(**arguments)
    except Exception as e:
        raise DdpError(
            f"the robot '{name}' cannot be constructed: {describe_exception(e)}.",
            "Check its connection, and the arguments given by --robot-arg.",
        ) from e
    missing = [method for method in METHODS if not callable(getattr(robot, method, None))]
    if missing:
        raise ConfigError(f"the robot '{name}' has no method '{missing[0]}'.", f"It needs {', '.join(METHODS)}.")
    return robot


def _find_entry_point(name: str) -> Callable[..., Any]:
    entries = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in entries:
        names = [MOCK, SIM, *sorted(entries)]
        raise UnknownNameError("robot", name, names, f"Valid: {', '.join(names)}, or MODULE:CLASS.")
    return _import(entries[name].module, entries[name].attr)


def _import(module: str, attribute: str) -> Callable[..., Any]:
    if not all(part.isidentifier() for part in module.split(".")):
        raise DdpError(f"'{module}' is not the name of a module.", "Write MODULE:CLASS, without a folder.")
    missing = DdpError(
        f"there is no module '{module}'.", "Install its package, or run `ddp` in the folder of the file."
    )
    imported = import_user_module(module, missing)
    if not callable(factory := getattr(imported, attribute, None)):
        names = [name for name, value in vars(imported).items() if _is_robot(value)]
        valid = f"It has {', '.join(names)}." if names else "Write MODULE:CLASS."
        raise DdpError(f"the module '{module}' has no class '{attribute}'.", valid)
    return factory


def _is_robot(value: object) -> bool:
    return isinstance(value, type) and all(callable(getattr(value, method, None)) for method in METHODS)


class MockRobot:
    """A robot that observes noise of the right shapes and executes nothing: for trying out the loop."""

    def __init__(self, task: Task, obs: str) -> None:
        self._cameras, self._vectors = task.images(obs), task.vectors("state")
        self._generator = np.random.default_rng(0)
        self.commands: list[Array] = []

    def observe(self) -> dict[str, NDArray[Any]]:
        images = {
            key: self._generator.integers(0, 256, camera.shape, np.uint8) for key, camera in self._cameras.items()
        }
        vectors = {key: self._generator.normal(size=width).astype(np.float32) for key, width in self._vectors.items()}
        return images | vectors

    def command(self, action: Array) -> None:
        self.commands.append(action)

    def reset(self) -> None:
        self.commands.clear()

    def stop(self) -> None:
        """Nothing moves."""
