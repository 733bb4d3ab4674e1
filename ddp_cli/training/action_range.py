"""Recorded actions that a policy would not predict with the default settings, of tasks without a simulator."""

from __future__ import annotations

import numpy as np

from ddp_cli.core.normalizer import MIN_RANGE
from ddp_cli.data.lint_source import dimension_names
from ddp_cli.data.store import Store
from ddp_cli.schema import ACTION
from ddp_cli.tasks import RECORDED

MIN_MOTION = 1e-6  # below it values that differ are taken for rounding errors
MIN_SHARE = 0.01  # of the largest value, by which values have to differ


def find_unclippable(store: Store) -> list[str]:
    """The names of the values whose normalized actions reach beyond -1 to 1. The normalization by the range does not,
    and delta actions of robosuite are clipped by its controller.
    """
    kinds = [part.normalization for part in store.task.action_parts(RECORDED) for _ in range(part.width)]
    if not _is_recorded(store) or {*kinds} == {"range"}:
        return []
    beyond = np.abs(store.read(ACTION)).max(0) > 1.0
    return [
        name
        for name, kind, is_beyond in zip(_names(store), kinds, beyond, strict=True)
        if kind == "gaussian" or (kind == "identity" and is_beyond)
    ]


def find_unlearnable(store: Store) -> list[str]:
    """The names of the values that move, but in a range in which the normalizer takes them for a constant."""
    if not _is_recorded(store):
        return []
    actions = store.read(ACTION)
    spread = np.ptp(actions, axis=0)
    is_moving = (spread > MIN_MOTION) & (spread > MIN_SHARE * np.abs(actions).max(0))
    is_unlearnable = is_moving & (spread < MIN_RANGE)
    return [name for name, flag in zip(_names(store), is_unlearnable, strict=True) if flag]


def _is_recorded(store: Store) -> bool:
    return bool(store.attrs["action"]["convention"] == RECORDED)


def _names(store: Store) -> tuple[str, ...]:
    return dimension_names(store.task.schema, store.task.action_parts(RECORDED))[ACTION]
