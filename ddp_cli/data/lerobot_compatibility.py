"""Why a LeRobot dataset cannot be converted, as far as its description and its files tell: all reasons, the most
fundamental first.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ddp_cli.data.lerobot_files import DatasetFiles
from ddp_cli.data.lerobot_layout import (
    ACTION_FEATURE,
    OBJECT_FEATURE,
    STATE_FEATURE,
    VERSION,
    LeRobotFolder,
    feature_of,
)
from ddp_cli.data.lerobot_names import shorten
from ddp_cli.data.parquet import COPY_AGAIN
from ddp_cli.errors import DataError
from ddp_cli.robots import ARM_WIDTHS
from ddp_cli.tasks import RECORDED, ROBOSUITE_CAMERA, ROBOSUITE_RATE, TASKS, Task, robosuite_task

REQUIREMENTS = (
    f"Datasets of format {VERSION}, of one Panda arm at {ROBOSUITE_RATE:g} Hz with images of "
    f"{ROBOSUITE_CAMERA.height}x{ROBOSUITE_CAMERA.width}, can be converted."
)


class Reason(NamedTuple):
    """Why a dataset cannot be converted, and what to do about it."""

    text: str
    hint: str


class MissingOptionsError(DataError):
    """A dataset that can be converted with the options --task and --actions, as far as its description tells."""


UNNAMED_TASK = Reason("it does not name its task", f"Add --task {', '.join(TASKS)} or a task file.")
UNNAMED_CONVENTION = Reason(
    "it does not state its action convention", f"Add --actions {' or --actions '.join(ARM_WIDTHS)}."
)


def find_reasons(
    folder: LeRobotFolder, files: DatasetFiles, task: Task | None, convention: str | None, obs: str
) -> list[Reason]:
    """Why `folder` cannot be converted to a store of `task` with actions in `convention` and observations `obs`.

    `task` and `convention` are None where they are not known: then only what holds for all is found.
    """
    reasons = [
        *_check_format(folder, files, task.schema.rate if task else ROBOSUITE_RATE),
        *_check_action(files, convention, task),
        *_check_observations(files, task, obs),
        *_check_files(files),
    ]
    if not files.missing and not files.damaged:
        reasons += _check_counts(folder, files)
    return reasons or [UNNAMED_TASK] * (task is None) + [UNNAMED_CONVENTION] * (convention is None)


def refusal(path: Path, reasons: list[Reason]) -> DataError:
    """One error for all `reasons`."""
    message = f"'{path}' cannot be converted: {'; '.join(reason.text for reason in reasons)}."
    hints = list(dict.fromkeys(reason.hint for reason in reasons))
    if all(reason in (UNNAMED_TASK, UNNAMED_CONVENTION) for reason in reasons):
        return MissingOptionsError(message, " ".join(hints))
    return DataError(message, hints[0] if len(hints) == 1 else REQUIREMENTS)


def action_widths(convention: str | None, task: Task | None) -> tuple[int, ...]:
    """Valid widths of actions; absolute goals are also recorded with an axis-angle rotation."""
    if task and convention == RECORDED:
        return (task.schema.action_dim,)
    count = task.n_robots if task else 1
    delta, absolute = (count * ARM_WIDTHS[name] for name in ("delta", "absolute"))
    return {"delta": (delta,), "absolute": (absolute, delta)}.get(convention or "", (delta, absolute))


def _check_format(folder: LeRobotFolder, files: DatasetFiles, rate: float) -> list[Reason]:
    reasons = []
    if folder.version != VERSION:
        reasons.append(
            Reason(
                f"it has LeRobot format {folder.version}, expected {VERSION}",
                "Upgrade it with LeRobot: convert_dataset_v21_to_v30 takes v2.1.",
            )
        )
    if files.fps != rate:
        actual = "an unknown rate" if files.fps is None else f"{files.fps:g} Hz"
        reasons.append(
            Reason(f"it was recorded at {actual}, expected {rate:g} Hz", "Record or resample it at this rate.")
        )
    return reasons


def _check_action(files: DatasetFiles, convention: str | None, task: Task | None) -> list[Reason]:
    widths = action_widths(convention, task)
    expected = f"{' or '.join(map(str, widths))}" + (f" for {convention} actions" if convention else "")
    if not files.features:
        return [Reason("meta/info.json does not describe its features", COPY_AGAIN)]
    if ACTION_FEATURE not in files.features:
        return [Reason(f"it has no feature '{ACTION_FEATURE}'", f"It has {', '.join(files.features)}.")]
    shape = files.features[ACTION_FEATURE].shape
    if not shape:
        return [Reason(f"meta/info.json does not describe its features: '{ACTION_FEATURE}' has no shape", COPY_AGAIN)]
    if shape in [(width,) for width in widths]:
        return []
    text = f"its actions have shape {list(shape)}{_names(files, ACTION_FEATURE)}, expected a width of {expected}"
    return [Reason(text, "Actions of each arm are position, rotation, gripper.")]


def _check_observations(files: DatasetFiles, task: Task | None, obs: str) -> list[Reason]:
    if not files.features:
        return []
    # A task that is not known has the cameras and proprioception that most have.
    assumed = task or robosuite_task("unknown", "unknown")
    whose = f" for the task '{task.name}'" if task else ""
    expected: dict[str, tuple[int, ...]] = {STATE_FEATURE: (sum(assumed.low_dim.values()),)}
    if assumed.object_dim:
        expected[OBJECT_FEATURE] = (assumed.object_dim,)
    images = {feature_of(key): camera.shape for key, camera in assumed.images(obs).items()}
    expected |= images
    missing = [name for name in expected if name not in files.features]
    reasons = []
    if missing:
        reasons.append(
            Reason(
                f"it has no feature {' and '.join(map(repr, missing))}{whose}",
                f"It has {', '.join(files.features)}. Other cameras and sensors can be named in a task file (--task).",
            )
        )
    for name, shape in expected.items():
        if name in missing:
            continue
        feature = files.features[name]
        if not feature.shape:
            text = f"meta/info.json does not describe its features: '{name}' has no shape"
            reasons.append(Reason(text, COPY_AGAIN))
        # Images are (height, width, channels) in LeRobot, (channels, height, width) in some other tools.
        elif sorted(feature.shape) != sorted(shape):
            text = f"{name} has shape {list(feature.shape)}{_names(files, name)}, expected {list(shape)}{whose}"
            hint = "Resize the images." if name in images else "Describe other sensors in a task file (--task)."
            reasons.append(Reason(text, hint))
        elif name in images and not feature.is_visual:
            reasons.append(Reason(f"{name} has dtype {feature.dtype}, expected video or image", "Write it as images."))
    return reasons


def _check_files(files: DatasetFiles) -> list[Reason]:
    reasons = []
    if files.missing:
        are = "are" if len(files.missing) > 1 else "is"
        text = f"{len(files.missing)} of its {files.expected} files {are} missing, the first is '{files.missing[0]}'"
        reasons.append(Reason(text, COPY_AGAIN))
    reasons += [Reason(message.removesuffix("."), COPY_AGAIN) for message in files.damaged[:3]]
    return reasons


def _check_counts(folder: LeRobotFolder, files: DatasetFiles) -> list[Reason]:
    counts = (("total_episodes", files.episodes, "episodes"), ("total_frames", files.steps, "steps"))
    return [
        Reason(f"meta/info.json declares {folder.info[name]!r} {unit}, its tables hold {found}", COPY_AGAIN)
        for name, found, unit in counts
        if name in folder.info and folder.info[name] != found
    ]


def _names(files: DatasetFiles, feature: str) -> str:
    """The names of the values of a feature in brackets, as far as they are stated."""
    names = files.features[feature].names
    return "" if names is None or files.features[feature].is_visual else f" ({shorten(names, 3)})"
