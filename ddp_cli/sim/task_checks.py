"""Whether a task fits its environment: what nobody knows before the simulator has made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ddp_cli.errors import ConfigError, close_match
from ddp_cli.tasks import ACTION_DIM, Task


def check_env_name(env_name: str, known: Iterable[str]) -> None:
    """ConfigError unless `env_name` is one of the `known` environments that a single arm can act in."""
    valid = sorted(name for name in known if not name.startswith("TwoArm"))
    if env_name not in valid:
        raise ConfigError(
            f"robosuite has no environment '{env_name}' for one arm{close_match(env_name, valid)}",
            f"Valid env_name: {', '.join(valid)}.",
        )


def check_task_observables(task: Task, action_dim: int, cameras: Iterable[str], widths: Mapping[str, int]) -> None:
    """ConfigError unless the environment has the task's cameras and observables (`widths`: what it has)."""
    if action_dim != ACTION_DIM:
        raise ConfigError(
            f"{task.env_name} takes actions of {action_dim} values, an arm with a gripper {ACTION_DIM}.",
            "Use another env_name.",
        )
    for key, camera in task.cameras.items():
        if camera not in cameras:
            raise ConfigError(
                f"task '{task.name}', cameras.{key}: {task.env_name} has no camera '{camera}'"
                f"{close_match(camera, cameras)}",
                f"Valid: {', '.join(cameras)}.",
            )
    for field, keys in (("low_dim", task.low_dim), ("object", task.object)):
        for key, width in keys.items():
            where = f"task '{task.name}', {field}: "
            if key not in widths:
                raise ConfigError(
                    f"{where}{task.env_name} has no observable '{key}'{close_match(key, widths)}",
                    f"Valid, with widths: {', '.join(f'{k} {w}' for k, w in widths.items())}.",
                )
            if width != widths[key]:
                raise ConfigError(
                    f"{where}'{key}' has width {widths[key]}, not {width}.", f'Write "{key}": {widths[key]}.'
                )
