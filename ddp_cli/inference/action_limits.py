"""The limits that the actions of a policy are clamped to. safety.py clamps them."""

from __future__ import annotations

from typing import Any

from ddp_cli.core.checkpoint import CONFIG, Meta
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.errors import CheckpointError
from ddp_cli.safety import ActionLimits


def action_limits(policy: DiffusionPolicy, meta: Meta) -> ActionLimits:
    """The limits that the actions of `policy` are clamped to. `meta` is the content of its checkpoint's config.json.

    Absolute positions: the range that the checkpoint records, or else the one that follows from the normalizer, plus a
    margin. CheckpointError if that is not a range.
    """
    recorded: Any = meta.get("action_range")
    try:
        if recorded:
            return ActionLimits.from_range(policy.config.actions, recorded["low"], recorded["high"])
        scale, offset = (policy.normalizer.get_buffer(f"action_{part}").tolist() for part in ("scale", "offset"))
        return ActionLimits.from_normalizer(policy.config.actions, scale, offset)
    except (ValueError, KeyError, TypeError) as e:
        source = f"action_range in {CONFIG}" if recorded else "the action normalizer"
        raise CheckpointError(
            f"{source} is not a range of positions: {type(e).__name__} {e}.", "Use another checkpoint."
        ) from e
