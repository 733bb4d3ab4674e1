"""Tasks described by a JSON file, by a store or by a checkpoint.

The full description holds a schema. A task of robosuite can also be described in short, by its environment and the
names of what is observed; stores and checkpoints of earlier versions hold this form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, StrictBool, model_validator

from ddp_cli.base_config import BaseConfig
from ddp_cli.errors import ConfigError
from ddp_cli.robots import ROBOTS, Robosuite, read_robot
from ddp_cli.schema import MAX_WIDTH, OBJECT, Identifier, Schema, Width, check_identifier
from ddp_cli.task_difference import describe_difference
from ddp_cli.tasks import CAMERAS, TASKS, Task, get_task, robosuite_task

TASK_EXAMPLE = '{"name": "my_door", "env_name": "Door"}'
STORE_KEYS = ("object", "action")  # arrays that a store adds itself
MAX_HORIZON = 100_000
WIDTHS_DESCRIPTION = (
    f'observables of the simulator and their widths, 1 to {MAX_WIDTH}, for example {{"robot0_eef_pos": 3}}'
)


def _check_image_key(text: str) -> str:
    if not text.endswith("_image"):
        raise ValueError("keys of images end in '_image'")
    return check_identifier(text)


def _check_observable(text: str) -> str:
    if text.endswith("_image"):
        raise ValueError("keys that end in '_image' are cameras")
    return check_identifier(text)


def _check_not_reserved(text: str) -> str:
    if text in STORE_KEYS:
        raise ValueError("a store uses this key itself")
    return text


def _check_robot(name: str) -> str:
    if name not in ROBOTS:
        raise ValueError(f"expected one of {', '.join(ROBOTS)}")
    return name


ImageKey = Annotated[str, AfterValidator(_check_image_key)]
Observable = Annotated[str, AfterValidator(_check_observable)]
LowDimKey = Annotated[Observable, AfterValidator(_check_not_reserved)]
NonEmpty = Annotated[str, Field(min_length=1)]
Horizon = Annotated[int, Field(strict=True, ge=1, le=MAX_HORIZON, description=f"a number of steps, 1 to {MAX_HORIZON}")]


class RobosuiteDescription(BaseConfig):
    """A task of robosuite in short. The order of `cameras`, `low_dim` and `object` is that of the policy's inputs."""

    key_kind: ClassVar[str] = "key"
    default_hint: ClassVar[str] = f"A task has at least {TASK_EXAMPLE}."

    name: Identifier
    env_name: NonEmpty
    cameras: dict[ImageKey, NonEmpty] = Field(
        default_factory=CAMERAS.copy,
        min_length=1,
        description='image keys and cameras of the simulator, for example {"agentview_image": "agentview"}',
    )
    low_dim: dict[LowDimKey, Width] | None = Field(None, description=WIDTHS_DESCRIPTION)
    object: dict[Observable, Width] = Field(default_factory=dict, description=WIDTHS_DESCRIPTION)
    model_varies: Annotated[StrictBool, Field(description="true or false")] = True
    horizon: Horizon = 400
    robots: Annotated[tuple[Annotated[str, AfterValidator(_check_robot)], ...], Field(min_length=1, max_length=2)] = (
        "Panda",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_robot(cls, values: dict[str, Any]) -> dict[str, Any]:
        return read_robot(values)

    def to_task(self) -> Task:
        return robosuite_task(**dict(self))


class TaskDescription(BaseConfig):
    """A task by its schema, as `Task.to_json` writes it."""

    key_kind: ClassVar[str] = "key"
    default_hint: ClassVar[str] = "See docs/own-data.md."
    names_place: ClassVar[bool] = True

    name: Identifier
    schema_: Schema = Field(alias="schema")
    simulator: Robosuite | None = None
    horizon: Horizon = 400

    @model_validator(mode="after")
    def _check_simulator(self) -> Self:
        """ConfigError unless the schema is that of the simulator. Sizes of images and normalization are free."""
        if self.simulator is None:
            return self
        schema, simulator = self.schema_, self.simulator
        object_width = schema.vectors[OBJECT].width if OBJECT in schema.vectors else 0
        comparisons: list[tuple[str, object, object]] = [
            ("cameras", sorted(schema.cameras), sorted(simulator.cameras)),
            *((f"cameras.{key}.channels", camera.channels, 3) for key, camera in schema.cameras.items()),
            ("vectors.object.width", object_width, sum(simulator.object.values())),
        ]
        if simulator.has_known_actions:
            comparisons += [
                ("action", [part.name for part in schema.action], [part.name for part in simulator.action]),
                *(
                    (f"action.{part.name}", part.to_json(), expected.to_json())
                    for part, expected in zip(schema.action, simulator.action, strict=False)
                ),
            ]
        for name, actual, expected in comparisons:
            if actual != expected:
                raise ConfigError(
                    f"schema.{name} = {actual!r} does not fit the simulator, expected {expected!r}.",
                    "Correct the schema, or leave out the simulator.",
                )
        return self

    def to_task(self) -> Task:
        return Task(self.name, self.schema_, self.simulator, self.horizon)


def task_file_path(text: str) -> Path | None:
    """The file that `--task` names; None if it names a task."""
    return Path(text) if text.lower().endswith(".json") else None


def read_task(text: str) -> Task:
    """The task that `--task` names: a built-in one, or the one described by a .json file."""
    path = task_file_path(text)
    return task_from_file(path) if path else get_task(text)


def task_name(text: str) -> str:
    """The name of the task that `--task` names. It need not be built in: runs are found by name."""
    path = task_file_path(text)
    return task_from_file(path).name if path else text


def task_from_file(path: Path) -> Task:
    """The task described by a JSON file; ConfigError names the invalid value and what would be valid."""
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no file '{path}'.", f"Write one, for example {TASK_EXAMPLE}, or name a task.") from None
    except (ValueError, OSError, RecursionError) as e:
        raise ConfigError(f"'{path}' is not valid JSON: {e}.", f"Write {TASK_EXAMPLE}.") from None
    if not isinstance(description, dict):
        raise ConfigError(f"'{path}' does not contain a JSON object.", f"Write {TASK_EXAMPLE}.")
    task = task_from_json(description, f"'{path}'")
    same_name = TASKS.get(task.name.lower())
    if same_name and (task.simulator is None or task.simulator.env_name != same_name.robosuite.env_name):
        raise ConfigError(f"'{path}': '{task.name}' is the name of a built-in task.", "Choose another name.")
    return task


def task_from_json(description: object, where: str = "the task") -> Task:
    """The task for the output of `Task.to_json`; error messages begin with `where`."""
    if isinstance(description, str):
        return get_task(description)
    if not isinstance(description, dict):
        raise ConfigError(
            f"{where} is {description!r}.", f"Give a name ({', '.join(TASKS)}) or a description: {TASK_EXAMPLE}."
        )
    try:
        task = (TaskDescription if "schema" in description else RobosuiteDescription)(**description).to_task()
    except ConfigError as e:
        raise ConfigError(f"{where}: {e.message}", e.hint) from None
    return task


def check_task_of_policy(task: Task, text: str, policy: Path) -> None:
    """ConfigError if `--task` names, or describes in a file, another task than `task`, that of a `policy` which was
    named beside it.
    """
    if not task_file_path(text) and text != task.name:
        raise ConfigError(
            f"'{policy}' is a policy of the task '{task.name}', not of '{text}'.",
            "Leave out --task, or name a policy of that task.",
        )
    check_same_task(task, text, policy)


def check_same_task(task: Task, text: str | None, where: Path) -> None:
    """ConfigError if `--task` names a file that describes another task than `task`, the task of `where`."""
    path = task_file_path(text) if text else None
    differences = describe_difference(task, task_from_file(path)) if path else ""
    if differences:
        raise ConfigError(
            f"the task of '{where}' differs from '{path}': {differences}.",
            "The task of a policy is fixed: omit --task, or train a new policy.",
        )
