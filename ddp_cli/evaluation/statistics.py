"""Statistics of success counts: confidence intervals of a rate and of a difference, exact test of two policies.

scipy.stats takes a second to import, so it is imported where it is needed: not by an evaluation of one policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927); valid near 0 and 1 and for small `n`."""
    p, z2 = successes / n, Z95 * Z95
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * p * (1 - p) / n + z2 * z2 / (4 * n * n)) / (1 + z2 / n)
    return 0.0 if successes == 0 else center - half, 1.0 if successes == n else center + half


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of a mean by Student's t; None for a single value."""
    from scipy.stats import t

    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return None
    standard_error = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)
    half = float(t.ppf(0.975, n - 1)) * standard_error
    return mean - half, mean + half


@dataclass(frozen=True)
class PairedOutcomes:
    """Outcomes of two policies on the same seeds: how often both, only one, or neither succeeded."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the first policy minus that of the second; nan without pairs."""
        return (self.only_first - self.only_second) / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the difference: method 10 of Newcombe (1998), Statistics in Medicine 17.

        It combines the Wilson intervals of both rates ("square-and-add"), with a term for their correlation. (-1, 1)
        without pairs.
        """
        if not self.n:
            return -1.0, 1.0
        first, second = self.both + self.only_first, self.both + self.only_second
        rate_1, rate_2 = first / self.n, second / self.n
        low_1, high_1 = wilson_interval(first, self.n)
        low_2, high_2 = wilson_interval(second, self.n)
        correlation = self._correlation(first, second)

        def distance(a: float, b: float) -> float:
            return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

        return (
            self.difference - distance(rate_1 - low_1, high_2 - rate_2),
            self.difference + distance(high_1 - rate_1, rate_2 - low_2),
        )

    def _correlation(self, first: int, second: int) -> float:
        """Correlation of the outcomes with Newcombe's continuity correction; 0 where a rate is 0 or 1."""
        variance = first * (self.n - first) * second * (self.n - second)
        if not variance:
            return 0.0
        covariance: float = self.both * self.neither - self.only_first * self.only_second
        if covariance > 0:
            covariance = max(covariance - self.n / 2, 0)
        return covariance / math.sqrt(variance)

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
