"""What counts of successes say, and do not say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927); also right near 0 and 1 and for small n."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class PairedOutcomes:
    """Two policies on the same starts: how often both, only one, or neither succeeded."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar test: how likely a split of the starts on which they differ is at least as
        uneven as this one, if both policies were equally good.
        """
        n, k = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        return min(1.0, 2.0 * tail)


def paired(first: Mapping[int, bool], second: Mapping[int, bool]) -> PairedOutcomes:
    """Success by seed of two policies, compared on the seeds that both have run."""
    outcomes = [(first[seed], second[seed]) for seed in first if seed in second]
    return PairedOutcomes(
        both=outcomes.count((True, True)),
        only_first=outcomes.count((True, False)),
        only_second=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
    )
