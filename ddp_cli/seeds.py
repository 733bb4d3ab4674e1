"""Seeds of the initial states of episodes: a range for each purpose.

Nothing is imported here, so `ddp --help` can read it at once.
"""

from __future__ import annotations

MAX_SEED = 2**53 - 2**31
"""Largest first seed: the following ones count up, and on pages of reports, numbers are exact up to 2^53."""

FIRST_SEED: dict[str, int] = {"collect": 1_000, "eval": 100_000, "training": 200_000, "report": 300_000}
"""First seed of each purpose. They never overlap by default: a policy is trained, compared and reported on different
initial states."""

FIRST_POLICY_SEED = 50_000
"""First seed of episodes that are collected with a policy: other initial states than those of its demonstrations."""


def purposes_of_seeds(seeds: range) -> list[str]:
    """The purposes among whose seeds, from the first one of each to that of the next, are some of `seeds`."""
    ends = [*list(FIRST_SEED.values())[1:], max(seeds.stop, FIRST_SEED["report"]) + 1]
    bounds = zip(FIRST_SEED.items(), ends, strict=True)
    return [purpose for (purpose, first), end in bounds if max(first, seeds.start) < min(end, seeds.stop)]


def unused_seed(used: range) -> int:
    """First seed of as many that are not in `used`: those for reports, or the ones after `used`."""
    first = FIRST_SEED["report"]
    return first if first + len(used) <= used.start or used.stop <= first else used.stop
