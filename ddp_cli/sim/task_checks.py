"""Checks of a task against its environment, which only the simulator can answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ddp_cli.errors import ConfigError, UnknownNameError, close_match
from ddp_cli.sim.renderer import MAX_IMAGE_SIZE
from ddp_cli.tasks import Task


def check_env_name(env_name: str, environments: Iterable[str]) -> None:
    """UnknownNameError unless `env_name` is one of robosuite's `environments`."""
    valid = sorted(environments)
    if env_name not in valid:
        raise UnknownNameError("robosuite environment", env_name, valid)


def check_task_observables(task: Task, action_dim: int, cameras: Iterable[str], widths: Mapping[str, int]) -> None:
    """ConfigError unless the environment has the cameras and observables of the task.

    `cameras` and `widths` (observable -> width) describe the environment.
    """
    simulator, expected = task.robosuite, task.schema.action_dim
    if action_dim != expected:
        raise ConfigError(
            f"task '{task.name}': {simulator.env_name} takes actions of {action_dim} values with "
            f"{' and '.join(simulator.robots)}, not of {expected}.",
            "Convert a recording without --task: the task is then read from the simulator.",
        )
    for key, camera in simulator.cameras.items():
        if camera not in cameras:
            raise ConfigError(
                f"task '{task.name}', cameras.{key}: {simulator.env_name} has no camera '{camera}'"
                f"{close_match(camera, cameras)}",
                f"Valid: {', '.join(cameras)}.",
            )
    for key, image in task.schema.cameras.items():
        if max(image.height, image.width) > MAX_IMAGE_SIZE:
            raise ConfigError(
                f"task '{task.name}', cameras.{key}: images of {image.height}x{image.width} pixels cannot be rendered.",
                f"Valid: up to {MAX_IMAGE_SIZE}x{MAX_IMAGE_SIZE}.",
            )
    for field, keys in (("low_dim", task.low_dim), ("object", simulator.object)):
        for key, width in keys.items():
            location = f"task '{task.name}', {field}: "
            if key not in widths:
                raise ConfigError(
                    f"{location}{simulator.env_name} has no observable '{key}'{close_match(key, widths)}",
                    f"Valid, with widths: {', '.join(f'{k} {w}' for k, w in widths.items())}.",
                )
            if width != widths[key]:
                raise ConfigError(
                    f"{location}'{key}' has width {widths[key]}, not {width}.", f'Write "{key}": {widths[key]}.'
                )
