"""Describes an environment of robosuite as a task, by asking the simulator: what it observes, takes and varies."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.robots import PROPRIO, Robosuite
from ddp_cli.schema import OBJECT, Camera, Schema
from ddp_cli.sim.action_space import action_parts
from ddp_cli.sim.environment import env_args, import_robosuite, make_env, simulator_versions
from ddp_cli.sim.observable_checks import undetermined_observables
from ddp_cli.sim.simulator import Simulator
from ddp_cli.sim.task_checks import check_env_name
from ddp_cli.tasks import ROBOSUITE_CAMERA, Task, object_vector, observable_vector

OVERVIEW_CAMERAS = ("agentview", "frontview")
"""Cameras of the scene, the preferred one first."""
SEEDS = range(3)  # of resets that are compared


def describe_environment(
    name: str, simulator: Robosuite, rate: float, horizon: int, images: Mapping[str, Camera], base: Task | None = None
) -> tuple[Task, list[str]]:
    """The task `name` of the environment, robots and arguments of `simulator`, and notes on what was left out.

    `images` are the recorded cameras by key, which the task observes. Without any, it observes the cameras of the
    built-in task `base` of this environment, or the scene and the hands. SimulatorError if it cannot be made.
    """
    kwargs, notes = known_arguments(simulator.env_name, simulator.env_kwargs)
    simulator = simulator.model_copy(update={"env_kwargs": kwargs})
    # Until the environment is made, only its rate and its robots are known.
    schema = Schema(rate=rate, vectors={"unknown": observable_vector("unknown", 1)}, action=simulator.action)
    task = Task(name, schema, simulator, horizon)
    with closing(make_env(task, env_args(task))) as env:
        observables = {key: np.atleast_1d(x) for key, x in env._get_observations(force_update=True).items()}
        cameras = _find_cameras(env, images, base, notes)
        proprioception = _find_proprioception(env, observables)
        objects = {
            key: len(observables[key])
            for key, observable in env._observables.items()
            if observable.modality == "object" and key in observables
        }
        if base and objects.keys() >= base.robosuite.object.keys():
            objects = base.robosuite.object  # in the order of the published datasets
        parts = action_parts(env)
    task = _with_observations(task, parts, cameras, proprioception, objects)
    with closing(Simulator(task)) as sim:
        undetermined = undetermined_observables(sim)
    if undetermined:
        notes.append(f"{', '.join(undetermined)}: not determined by the simulator state, not observed")
        kept = [{k: x for k, x in found.items() if k not in undetermined} for found in (proprioception, objects)]
        task = _with_observations(task, parts, cameras, *kept)
    if is_model_constant(task):
        task = _with_model(task, varies=False)
    return task, notes


def is_model_constant(task: Task) -> bool:
    """Whether episodes differ in their states only, so that resets may keep the model: by comparing some with resets
    that make it anew.
    """
    with (
        closing(Simulator(_with_model(task, varies=True))) as hard,
        closing(Simulator(_with_model(task, varies=False))) as soft,
    ):
        first: list[NDArray[Any]] = []
        for seed in SEEDS:
            hard.reset(seed)
            soft.reset(seed)
            arrays = _model_arrays(hard.model)
            first = first or arrays
            if not np.array_equal(hard.state(), soft.state()) or not all(
                np.array_equal(a, b, equal_nan=True) and np.array_equal(a, c, equal_nan=True)
                for a, b, c in zip(arrays, first, _model_arrays(soft.model), strict=True)
            ):
                return False
    return True


def _model_arrays(model: Any) -> list[NDArray[Any]]:
    """Copies of all arrays of a model: a reset may change it in place."""
    arrays = (getattr(model, name) for name in dir(model) if not name.startswith("_"))
    return [np.array(array) for array in arrays if isinstance(array, np.ndarray)]


def _with_model(task: Task, varies: bool) -> Task:
    return dataclasses.replace(task, simulator=task.robosuite.model_copy(update={"model_varies": varies}))


def known_arguments(env_name: str, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`kwargs` without what the environment has by default, and what the installed robosuite does not know, with a note
    on each of the latter. UnknownNameError if robosuite has no such environment.
    """
    robosuite = import_robosuite()
    check_env_name(env_name, robosuite.ALL_ENVIRONMENTS)
    parameters = inspect.signature(robosuite.environments.REGISTERED_ENVS[env_name].__init__).parameters
    version = simulator_versions()["robosuite"]
    notes = [
        f"{env_name} of robosuite {version} has no argument {key}, which was {value!r}"
        for key, value in kwargs.items()
        if key not in parameters
    ]
    known = {key: value for key, value in kwargs.items() if key in parameters}
    return {key: value for key, value in known.items() if not _is_default(value, parameters[key].default)}, notes


def _is_default(value: Any, default: Any) -> bool:
    return bool(value == default) or (isinstance(default, tuple) and value == list(default))


def _find_cameras(
    env: Any, images: Mapping[str, Camera], base: Task | None, notes: list[str]
) -> dict[str, tuple[str, Camera]]:
    """Image key -> camera of the simulator, and its images."""
    names = env.sim.model.camera_names
    found = {key: (key.removesuffix("_image"), camera) for key, camera in images.items()}
    missing = [key for key, (name, _) in found.items() if name not in names]
    notes += [f"{key}: the environment has no such camera, it is not observed" for key in missing]
    found = {key: value for key, value in found.items() if key not in missing}
    if found:
        return found
    if base and set(base.robosuite.cameras.values()) <= set(names):
        return {key: (base.robosuite.cameras[key], camera) for key, camera in base.schema.cameras.items()}
    overview = [name for name in OVERVIEW_CAMERAS if name in names][:1]
    hands = [name for name in names if name.endswith("eye_in_hand")]
    return {f"{name}_image": (name, ROBOSUITE_CAMERA) for name in [*overview, *hands]}


def _find_proprioception(env: Any, observables: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The poses of the end effectors, and the finger joints of grippers that have some: key -> width."""
    keys = [
        f"{robot.robot_model.naming_prefix}{'' if len(robot.arms) == 1 else f'{arm}_'}{key}"
        for robot in env.robots
        for arm in robot.arms
        for key in PROPRIO
    ]
    return {key: len(observables[key]) for key in keys if key in observables and len(observables[key])}


def _with_observations(
    task: Task,
    parts: Any,
    cameras: Mapping[str, tuple[str, Camera]],
    proprioception: Mapping[str, int],
    objects: Mapping[str, int],
) -> Task:
    schema = Schema(
        rate=task.schema.rate,
        cameras={key: camera for key, (_, camera) in cameras.items()},
        vectors=({OBJECT: object_vector(objects)} if objects else {})
        | {key: observable_vector(key, width) for key, width in proprioception.items()},
        action=parts,
    )
    update = {"cameras": {key: name for key, (name, _) in cameras.items()}, "object": dict(objects)}
    return dataclasses.replace(task, schema=schema, simulator=task.robosuite.model_copy(update=update))
