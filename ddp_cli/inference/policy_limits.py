"""The limits of the actions of a policy, from its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddp_cli.action_limits import ActionLimits
from ddp_cli.checkpoint_files import CONFIG
from ddp_cli.core.checkpoint import Meta
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.errors import CheckpointError


def action_limits(policy: DiffusionPolicy, meta: Meta) -> ActionLimits:
    """The limits that the actions of `policy` are clamped to. `meta` is the content of its checkpoint's config.json.

    Values without limits of their own: the range that the checkpoint records, or else the one that follows from the
    normalizer, plus a margin. CheckpointError if that is not a range.
    """
    recorded: Any = meta.get("action_range")
    try:
        low, high = _recorded_range(recorded, policy.config.action_dim) if recorded else _normalizer_range(policy)
        return ActionLimits.from_parts(policy.config.action_parts, low, high)
    except (ValueError, KeyError, TypeError) as e:
        source = f"action_range in {CONFIG}" if recorded else "the action normalizer"
        raise CheckpointError(
            f"{source} is not a range of actions: {type(e).__name__} {e}.", "Use another checkpoint."
        ) from e


def _recorded_range(recorded: Mapping[str, Sequence[float]], action_dim: int) -> tuple[list[float], list[float]]:
    """`action_range` of a checkpoint. Earlier versions recorded the first three values, those of a position."""
    low, high = list(recorded["low"]), list(recorded["high"])
    missing = action_dim - 3 if len(low) == len(high) == 3 else 0
    return low + [-math.inf] * missing, high + [math.inf] * missing


def _normalizer_range(policy: DiffusionPolicy) -> tuple[list[float], list[float]]:
    """The range that the normalizer maps to [-1, 1]; unlimited for values that it does not scale by their range.

    Scale 1 has two meanings:

    - with offset 0 the value is not normalized, as in published checkpoints: its range is -1 to 1;
    - with another offset it was constant in training and is mapped to 0: its range is a single value.
    """
    kinds = np.array(policy.normalizer.columns["action"])
    scale, offset = (
        policy.normalizer.get_buffer(f"action_{part}").double().numpy(force=True) for part in ("scale", "offset")
    )
    is_constant = (scale == 1.0) & (offset != 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of 0 is no range
        center, half_range = -offset / scale, np.where(is_constant, 0.0, 1.0 / np.abs(scale))
    low, high = np.where(kinds == "range", [center - half_range, center + half_range], [[-np.inf], [np.inf]])
    return low.tolist(), high.tolist()
