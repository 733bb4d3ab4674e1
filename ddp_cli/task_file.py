"""Tasks described by a JSON file, by a store or by a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from ddp_cli.errors import ConfigError
from ddp_cli.tasks import TASK_EXAMPLE, TASKS, Task, describe_difference, get_task


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
    return task_from_json(description, f"'{path}'")


def task_from_json(description: object, where: str = "the task") -> Task:
    """The task for the output of `Task.to_json`; error messages begin with `where`."""
    if isinstance(description, str):
        return get_task(description)
    if not isinstance(description, dict):
        raise ConfigError(
            f"{where} is {description!r}.", f"Give a name ({', '.join(TASKS)}) or a description: {TASK_EXAMPLE}."
        )
    try:
        task = Task(**description)
    except ConfigError as e:
        raise ConfigError(f"{where}: {e.message}", e.hint) from None
    if task.name.lower() in TASKS:
        raise ConfigError(f"{where}: '{task.name}' is the name of a built-in task.", "Choose another name.")
    return task


def check_same_task(task: Task, text: str | None, where: Path) -> None:
    """ConfigError if `--task` names a file that describes another task than `task`, the task of `where`."""
    path = task_file_path(text) if text else None
    differences = describe_difference(task, task_from_file(path)) if path else ""
    if differences:
        raise ConfigError(
            f"the task of '{where}' differs from '{path}': {differences}.",
            "The task of a policy is fixed: omit --task, or train a new policy.",
        )
