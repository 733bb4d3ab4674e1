"""Statistics of success counts: confidence interval of a rate, exact paired test of two policies.

scipy.stats is imported where it is used (0.5 to 1 s): the worker processes of an evaluation do not need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927); valid near 0 and 1 and for small `n`."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class PairedOutcomes:
    """Outcomes of two policies on the same seeds: how often both, only one, or neither succeeded."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar test (McNemar 1947): the p-value of the hypothesis that both policies are equal.

        That is a binomial test of the discordant pairs, the seeds where exactly one policy succeeds, with p = 0.5.
        """
        discordant = self.only_first + self.only_second
        if discordant == 0:
            return 1.0
        from scipy.stats import binomtest

        return float(binomtest(self.only_first, discordant, 0.5).pvalue)


def pair_outcomes(first: Mapping[int, bool], second: Mapping[int, bool]) -> PairedOutcomes:
    """Compare the outcomes {seed: success} of two policies on the seeds that both have run."""
    outcomes = [(first[seed], second[seed]) for seed in first if seed in second]
    return PairedOutcomes(
        both=outcomes.count((True, True)),
        only_first=outcomes.count((True, False)),
        only_second=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
    )
