"""What the values of a recording without simulator states must fulfil, whoever recorded it. Nothing can be replayed, so
this is all that can be known.

Shapes: n steps of an episode. Every fault is a DataError that begins with the location of the episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.actions import GRIP_SITE_IN_EEF
from ddp_cli.data.invariants import (
    CLIP_TOLERANCE,
    check_quaternions,
    looks_absolute,
    share_of_clipped_steps,
)
from ddp_cli.data.motion_check import check_episode, check_gripper_direction, check_lag, check_motion, correlation
from ddp_cli.errors import DataError
from ddp_cli.robots import DELTA_METRES, DELTA_RADIANS
from ddp_cli.rotation import matrix_from_6d, matrix_to_rotvec, quaternion_to_matrix, rotation_angle
from ddp_cli.schema import action_slices
from ddp_cli.tasks import Task

Floats = NDArray[np.float64]

MAX_CLIPPED_SHARE = 0.2  # of the steps of an episode
MAX_CLIPPED_SHARE_FOLLOWED = 0.5  # where the end effector moves as clipped actions say: a keyboard causes 0.3
MAX_COORDINATE = 2.0  # [m]; the robot reaches 0.9 m
MAX_FINGER = 0.1  # [m]; the fingers of the Panda move by 0.04 m
MAX_GOAL_DISTANCE = 0.15  # [m], median of an episode, from the end effector to its goal; robosuite's are within 0.09
MAX_GOAL_ANGLE = np.pi / 3  # likewise
ORTHONORMAL_TOLERANCE = 0.05


@dataclass(frozen=True)
class Advice:
    """What a user can do about values that do not fit: one sentence each, for one kind of source."""

    order: str
    """If the values are in another order."""
    goals: str
    """If delta actions may be goal poses."""
    offsets: str
    """If absolute actions may be delta actions."""


class ValueChecks:
    """Checks of the values of all episodes of a dataset of `task` with actions in `convention`.

    `with_motion` compares the actions with the motion as well, for recordings that no replay has checked. It applies to
    built-in tasks of one arm: of others, the frame of the base is not known.
    """

    def __init__(self, task: Task, convention: str, with_motion: bool, advice: Advice) -> None:
        self._task, self._convention, self._advice = task, convention, advice
        self._has_one_arm = task.n_robots == 1
        self._with_motion = with_motion and task.is_built_in and self._has_one_arm
        # Per kind of motion: offsets that actions command, and the motion of the step, (n, 3) each per episode.
        self._motions: dict[str, list[tuple[Floats, Floats]]] = {}
        # Gripper commands, and by how much the gripper closes after them [m], (n - 1,) each per episode.
        self._grips: list[tuple[Floats, Floats]] = []
        self._clipped = self._steps = 0

    def add(self, vectors: dict[str, Floats], store_action: Floats, location: str) -> None:
        """Checks an episode: `vectors` as recorded, `store_action` its actions as a store holds them."""
        check_observations(self._task, vectors, location, self._advice)
        for part, values in zip(self._task.schema.action, action_slices(self._task.schema.action), strict=True):
            if part.gripper:
                check_gripper(vectors["action"][:, values], location)
        has_position = self._has_one_arm and self._task.low_dim.get("robot0_eef_pos") == 3
        position = vectors["robot0_eef_pos"] if has_position else None
        self._steps += len(store_action)
        if self._convention == "delta":
            self._clipped += check_delta_actions(vectors["action"], position, location, self._advice)
        elif self._has_one_arm:
            check_absolute_actions(store_action, self._task, vectors, location, self._advice)
        if self._with_motion:
            self._add_motion(vectors, store_action, location)

    def _add_motion(self, vectors: dict[str, Floats], action: Floats, location: str) -> None:
        position, qpos = vectors["robot0_eef_pos"], vectors["robot0_gripper_qpos"]
        grips = (action[:-1, -1], -np.diff(qpos[:, 0] - qpos[:, 1]))
        if self._convention == "absolute":  # goals go where the end effector goes
            goal = action[:, :3]
            check_episode((np.diff(goal, axis=0), np.diff(position, axis=0)), grips, location)
            self._append_motion("position", (goal - goal.mean(axis=0)) / DELTA_METRES, position - position.mean(axis=0))
        else:
            check_episode((action[:-1, :3], np.diff(position, axis=0)), grips, location)
            rotation = quaternion_to_matrix(vectors["robot0_eef_quat"])
            rotated = matrix_to_rotvec(rotation[1:] @ rotation[:-1].transpose(0, 2, 1))
            self._append_motion("position", action[:-1, :3], np.diff(position, axis=0))
            self._append_motion("rotation", action[:-1, 3:6], rotated)
        self._grips.append(grips)

    def _append_motion(self, kind: str, commands: Floats, motion: Floats) -> None:
        unit = DELTA_METRES if kind == "position" else DELTA_RADIANS
        self._motions.setdefault(kind, []).append((commands, motion / unit))

    def finish(self, location: str) -> list[str]:
        """Checks all episodes together; returns notes on what a store holds otherwise than the dataset."""
        if self._with_motion:
            steps = self._motions["position"]
            if self._convention == "absolute":
                steps = [(np.diff(goals, axis=0), np.diff(positions, axis=0)) for goals, positions in steps]
            check_lag(steps, location)
            grips, closing = (np.concatenate(arrays) for arrays in zip(*self._grips, strict=True))
            check_gripper_direction(grips, closing, location)
        for kind, parts in self._motions.items():
            commands, motion = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            check_motion(kind, commands, motion, location, self._advice.order)
        return [f"action: clipped to [-1, 1] in {self._clipped} of {self._steps} steps"] if self._clipped else []


def check_observations(task: Task, vectors: dict[str, Floats], location: str, advice: Advice) -> None:
    """DataError unless the observables `vectors` (key -> (n, width)) of `task` can be what their keys say."""
    for key, values in vectors.items():
        if key.endswith("_quat") and values.shape[1] == 4:
            check_quaternions(values, f"{location}, {key}")
    limits = {"robot0_eef_pos": (3, MAX_COORDINATE), "robot0_gripper_qpos": (2, MAX_FINGER)}
    for key, (width, limit) in limits.items():
        if task.low_dim.get(key) == width and np.abs(vectors[key]).max() > limit:
            raise DataError(
                f"{location}: {key} is {vectors[key].min():.3g} to {vectors[key].max():.3g}, expected metres, at most "
                f"{limit:g}.",
                f"Write metres. {advice.order}",
            )


def check_delta_actions(actions: Floats, positions: Floats | None, location: str, advice: Advice) -> int:
    """The number of steps in which a value of the delta `actions` (n, 7) is clipped to [-1, 1].

    DataError if they look like absolute goals, if a value would be constant, or if more are clipped than a person
    causes. `positions` (n, 3) [m] of the end effector, if known, tell whether it moves as the actions say.
    """
    share = share_of_clipped_steps(actions)
    stuck = np.flatnonzero((np.ptp(actions.clip(-1, 1), axis=0) == 0) & (np.ptp(actions, axis=0) > CLIP_TOLERANCE))
    is_followed = positions is not None and correlation(actions.clip(-1, 1)[:-1, :3], np.diff(positions, axis=0)) > 0.5
    is_absolute = looks_absolute(actions) or len(stuck) > 0
    if is_absolute or share > (MAX_CLIPPED_SHARE_FOLLOWED if is_followed else MAX_CLIPPED_SHARE):
        element = int(stuck[0]) if len(stuck) else int((np.abs(actions) > 1).sum(0).argmax())
        low, high = actions[:, element].min(), actions[:, element].max()
        likely = "absolute goal poses" + ("" if is_absolute else " or actions of another scale")
        raise DataError(
            f"{location}: {share:.0%} of the steps have actions outside of [-1, 1] (value {element} is {low:.3g} to "
            f"{high:.3g}); they look like {likely}, not delta actions.",
            f"{advice.goals} Otherwise scale them to [-1, 1].",
        )
    return round(share * len(actions))


def check_gripper(actions: Floats, location: str) -> None:
    """DataError if the last value of `actions` opens and closes the gripper with 0 and 1 rather than -1 and 1."""
    gripper = actions[:, -1]
    if 0 <= gripper.min() < 0.25 and gripper.max() > 0.75:
        raise DataError(
            f"{location}: the gripper value of its actions is {gripper.min():.3g} to {gripper.max():.3g}, expected -1 "
            "(open) to 1 (closed).",
            "Write 2 * value - 1 if 1 closes, 1 - 2 * value if 1 opens.",
        )


def check_absolute_actions(
    actions: Floats, task: Task, vectors: dict[str, Floats], location: str, advice: Advice
) -> None:
    """DataError unless the absolute `actions` (n, 10) can be goals of the recorded end effector."""
    rows = actions[:, 3:9].reshape(-1, 2, 3)
    products = rows @ rows.transpose(0, 2, 1)
    deviation = np.abs(products - np.eye(2)).max()
    if deviation > ORTHONORMAL_TOLERANCE:
        raise DataError(
            f"{location}: the rotation-6d of its actions is not two orthogonal unit vectors (off by {deviation:.2g}).",
            "Write position, rotation-6d (two rows of the rotation matrix), gripper; or position, axis-angle, gripper.",
        )
    if task.low_dim.get("robot0_eef_pos") == 3:
        distance = float(np.median(np.linalg.norm(actions[:, :3] - vectors["robot0_eef_pos"], axis=1)))
        _check_goal(f"{distance:.2g} m", distance > MAX_GOAL_DISTANCE, f"{MAX_GOAL_DISTANCE} m", location, advice)
    if task.is_built_in:  # of other tasks, the pose of the base is not known
        observed = quaternion_to_matrix(vectors["robot0_eef_quat"]) @ GRIP_SITE_IN_EEF
        angle = float(np.median(rotation_angle(matrix_from_6d(actions[:, 3:9]), observed)))
        _check_goal(f"{np.degrees(angle):.0f} degrees", angle > MAX_GOAL_ANGLE, "60 degrees", location, advice)


def _check_goal(distance: str, is_far: bool, limit: str, location: str, advice: Advice) -> None:
    if is_far:
        raise DataError(
            f"{location}: its actions are goals {distance} (median) from the observed end effector, expected less than "
            f"{limit}: they are not absolute poses in the world frame, or in another order.",
            f"{advice.offsets} {advice.order}",
        )
