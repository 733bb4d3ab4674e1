"""Construction of robosuite environments: import, environment arguments, versions."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
import warnings
from typing import Any, get_args

from ddp_cli.choices import PolicyActions
from ddp_cli.errors import ConfigError, SimulatorError, UnknownNameError
from ddp_cli.robots import ARMS, Robosuite
from ddp_cli.sim.gl_backend import choose_gl_backend, import_error
from ddp_cli.sim.task_checks import check_env_name
from ddp_cli.tasks import Task

ROBOSUITE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What robosuite raises for arguments that it cannot use."""


def import_robosuite() -> Any:
    """The robosuite module; SimulatorError if it cannot be imported."""
    if "robosuite" in sys.modules:
        return sys.modules["robosuite"]
    choose_gl_backend()
    requested = os.environ.get("MUJOCO_GL")
    logging.disable(logging.WARNING)  # robosuite logs five warnings about optional packages
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import robosuite
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    except (ImportError, AssertionError, AttributeError, OSError, RuntimeError) as e:
        raise import_error(e) from e
    finally:
        if requested is not None:  # robosuite replaces it, and has no part in rendering
            os.environ["MUJOCO_GL"] = requested
        logging.disable(logging.NOTSET)
    return robosuite


def simulator_versions() -> dict[str, str]:
    """Installed versions of robosuite and mujoco: both affect trajectories and images."""
    return {name: importlib.metadata.version(name) for name in ("robosuite", "mujoco")}


def check_action_convention(task: Task, name: str) -> None:
    """UnknownNameError unless `name` is an action convention; ConfigError if the actions of `task` cannot have it."""
    if name not in get_args(PolicyActions):
        raise UnknownNameError("action convention", name, get_args(PolicyActions))
    if name == "absolute" and name not in task.conventions:
        raise ConfigError(
            f"the actions of '{task.name}' have no absolute form: only offsets of poses have one.",
            "Leave --actions out.",
        )


def env_args(task: Task, actions: str = "delta") -> dict[str, Any]:
    """Environment arguments in robomimic's format (`env_name`, `env_version`, `type`, `env_kwargs`)."""
    import_robosuite()
    rate = task.schema.rate
    try:
        controllers = _controller_configs(task.robosuite, actions)
    except ROBOSUITE_ERRORS as e:
        raise _creation_error(task.robosuite.env_name, e) from e
    return {
        "env_name": task.robosuite.env_name,
        "env_version": simulator_versions()["robosuite"],
        "type": 1,  # robomimic's EnvType.ROBOSUITE_TYPE
        "env_kwargs": {
            "robots": list(task.robosuite.robots),
            "controller_configs": controllers if len(controllers) > 1 else controllers[0],
            "control_freq": int(rate) if rate == int(rate) else rate,
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "use_camera_obs": False,
            "use_object_obs": True,
            "ignore_done": True,
            "lite_physics": True,
            "reward_shaping": False,
        }
        | task.robosuite.env_kwargs,
    }


def _controller_configs(simulator: Robosuite, actions: str) -> list[dict[str, Any]]:
    """The controller configuration of each robot: robosuite's default, with what differs."""
    from robosuite.controllers import load_composite_controller_config, load_part_controller_config

    configs = []
    for robot, overrides in zip(simulator.robots, simulator.controllers or [{}] * len(simulator.robots), strict=True):
        config = load_composite_controller_config(robot=robot)
        for part, settings in overrides.items():
            default = config["body_parts"].get(part, {})
            if settings.get("type", default.get("type")) != default.get("type"):
                kept = {key: default[key] for key in ("gripper",) if key in default}
                default = load_part_controller_config(default_controller=settings["type"]) | kept
            config["body_parts"][part] = default | settings
        for arm in ARMS:
            if actions == "absolute" and arm in config["body_parts"]:
                # robosuite 1.5 ignores `control_delta` of older configurations.
                config["body_parts"][arm] |= {"input_type": "absolute", "input_ref_frame": "world"}
        configs.append(config)
    return configs


def make_env(task: Task, args: dict[str, Any], lite_physics: bool = True) -> Any:
    """The robosuite environment of `task` with the `env_kwargs` of `args`.

    UnknownNameError if robosuite has no such environment, SimulatorError if it cannot be created.
    """
    robosuite = import_robosuite()
    simulator = task.robosuite
    check_env_name(simulator.env_name, robosuite.ALL_ENVIRONMENTS)
    kwargs = args["env_kwargs"] | {"lite_physics": lite_physics}
    try:
        # If episodes differ in the state alone, a soft reset is exact and 100x faster.
        return robosuite.make(simulator.env_name, **kwargs, hard_reset=simulator.model_varies, seed=0)
    except ROBOSUITE_ERRORS as e:
        raise _creation_error(simulator.env_name, e) from e


def _creation_error(env_name: str, error: Exception) -> SimulatorError:
    versions = ", ".join(f"{name} {version}" for name, version in simulator_versions().items())
    return SimulatorError(
        f"cannot create {env_name} with {versions}: {type(error).__name__}, {' '.join(str(error).split())}.",
        "Run `ddp doctor`. If it finds nothing, this robosuite cannot make the environment.",
    )
