"""Open-loop errors: predicted action chunks against recorded ones, by part of the action, by step into the chunk.

Shapes: K chunks, Ta steps of a chunk, Da action.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.evaluation.statistics import mean_interval
from ddp_cli.robots import DELTA_RADIANS, frame_of
from ddp_cli.rotation import matrix_from_6d, quaternion_to_matrix, rotation_angle, rotvec_to_matrix
from ddp_cli.schema import ActionPart, action_slices

Array = NDArray[np.float64]

POLICY = "policy"
BASELINES = {"hold": "last action held", "nearest": "nearest window"}


@dataclass(frozen=True)
class EpisodeChunks:
    """Chunks at some steps of an episode, by the policy and the baselines, and what was recorded instead."""

    name: str
    steps: NDArray[np.int64]
    """Step (K,) at which each chunk starts."""
    recorded: Array
    """(K, Ta, Da); nan after the end of the episode."""
    predicted: Mapping[str, Array]
    """Method -> (K, Ta, Da): POLICY and the keys of BASELINES."""


def part_errors(parts: Sequence[ActionPart], predicted: Array, recorded: Array) -> dict[str, Array]:
    """Errors (K, Ta) of each part: the angle between rotations [degrees], otherwise the mean absolute difference of its
    values in their own unit. nan where nothing was recorded, and where values are no rotation.
    """
    errors = {}
    for part, values in zip(parts, action_slices(parts), strict=True):
        ours, theirs = predicted[..., values], recorded[..., values]
        errors[part.name] = np.abs(ours - theirs).mean(-1) if part.rotation == "none" else _angles(part, ours, theirs)
    return errors


def _angles(part: ActionPart, a: Array, b: Array) -> Array:
    """Angles (K, Ta) between rotations (K, Ta, width) [degrees]."""
    angles = np.full(a.shape[:-1], math.nan)
    known = _are_rotations(part, a) & _are_rotations(part, b)
    angles[known] = np.degrees(rotation_angle(_matrices(part, a[known]), _matrices(part, b[known])))
    return angles


def _are_rotations(part: ActionPart, values: Array) -> NDArray[np.bool_]:
    """Which of the values (..., width) define a rotation; bool (...). Recordings may hold zeros where none is known."""
    if part.rotation == "axis-angle":
        return np.isfinite(values).all(-1)
    is_6d = part.rotation == "rotation-6d"
    return np.linalg.norm(np.cross(values[..., :3], values[..., 3:]) if is_6d else values, axis=-1) > 0.0


def _matrices(part: ActionPart, values: Array) -> Array:
    """Rotations (n, width) as matrices (n, 3, 3)."""
    if part.rotation == "axis-angle":
        # robosuite's delta actions are fractions of an angle.
        return rotvec_to_matrix(values * DELTA_RADIANS if frame_of(part) else values)
    if part.rotation == "rotation-6d":
        return matrix_from_6d(values)
    return quaternion_to_matrix(values if part.rotation == "quaternion-xyzw" else np.roll(values, -1, axis=-1))


def open_loop_report(parts: Sequence[ActionPart], episodes: Sequence[EpisodeChunks]) -> dict[str, Any]:
    """Errors of every part: means over episodes with 95% intervals (Student's t; None for a single episode), their
    means by step into the chunk, in how many episodes the policy is better than each baseline, and for parts without
    rotations the error of every value of the policy. Errors are None where nothing could be compared.
    """
    errors = {
        method: [part_errors(parts, episode.predicted[method], episode.recorded) for episode in episodes]
        for method in (POLICY, *BASELINES)
    }
    report: dict[str, Any] = {}
    for part, values in zip(parts, action_slices(parts), strict=True):
        methods = {
            method: _summary([episode[part.name] for episode in per_episode]) for method, per_episode in errors.items()
        }
        better = {
            baseline: sum(
                ours is not None and theirs is not None and ours < theirs
                for ours, theirs in zip(methods[POLICY]["episodes"], methods[baseline]["episodes"], strict=True)
            )
            for baseline in BASELINES
        }
        report[part.name] = {
            "unit": "degrees" if part.rotation != "none" else part.unit, **methods, "better_than": better,
        }  # fmt: skip
        if part.rotation == "none":
            report[part.name]["values"] = _value_errors(part, values, episodes)
    return report


def _summary(errors: Sequence[Array]) -> dict[str, Any]:
    """Mean and interval over episodes of errors (K, Ta) each, and the means by step."""
    with warnings.catch_warnings():
        # Episodes shorter than a chunk have no last steps, and some may hold no rotation at all.
        warnings.simplefilter("ignore", RuntimeWarning)
        means = [float(np.nanmean(episode)) for episode in errors]
        by_step = np.nanmean([np.nanmean(episode, axis=0) for episode in errors], axis=0)
    known = [mean for mean in means if not math.isnan(mean)]
    return {
        "error": sum(known) / len(known) if known else None,
        "interval_95": mean_interval(known) if known else None,
        "by_step": [_number_or_none(x) for x in by_step.tolist()],
        "episodes": [_number_or_none(x) for x in means],
    }


def _number_or_none(x: float) -> float | None:
    return None if math.isnan(x) else x


def _value_errors(part: ActionPart, values: slice, episodes: Sequence[EpisodeChunks]) -> dict[str, float]:
    differences = [np.abs(e.predicted[POLICY] - e.recorded)[..., values] for e in episodes]
    means = np.mean([np.nanmean(d, axis=(0, 1)) for d in differences], axis=0).tolist()
    return dict(zip(part.names or map(str, range(part.width)), means, strict=True))
