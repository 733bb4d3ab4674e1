"""Intervals and tests of success counts, against scipy, closed forms and worked examples."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
from scipy.stats import binomtest

from ddp_cli.evaluation.statistics import PairedOutcomes, pair_outcomes, wilson_interval


def mcnemar_closed_form(k: int, n: int) -> float:
    """Twice the tail of a binomial distribution with p = 0.5, at most 1."""
    return min(1.0, 2.0 * sum(math.comb(n, i) for i in range(min(k, n - k) + 1)) / 2**n)


def test_intervals_are_those_of_scipy_and_p_values_their_closed_form() -> None:
    for n in (*range(1, 41), 100, 200):
        for k in range(n + 1):
            low, high = wilson_interval(k, n)
            expected = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
            assert abs(low - expected.low) <= 1e-12, (k, n)
            assert abs(high - expected.high) <= 1e-12, (k, n)
            p_value, expected_p = PairedOutcomes(0, k, n - k, 0).p_value, mcnemar_closed_form(k, n)
            assert abs(p_value - expected_p) <= 1e-12 * expected_p, (k, n)


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (45, 50, (0.7864, 0.9565)), (1, 1, (0.2065, 1.0))],
)
def test_wilson_interval(successes: int, n: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(successes, n) == pytest.approx(interval, abs=5e-4)


def test_policies_are_compared_on_common_seeds() -> None:
    """A worked example of McNemar's test; a policy does not differ from itself."""
    first = {i: i < 15 for i in range(30)}
    second = {i: i >= 13 for i in range(100)}  # seeds that only one has run are left out
    outcomes = pair_outcomes(first, second)
    assert (outcomes.both, outcomes.only_first, outcomes.only_second, outcomes.neither) == (2, 13, 15, 0)
    assert outcomes.p_value == pytest.approx(0.8506, abs=1e-4)
    one_sided = pair_outcomes(dict.fromkeys(range(12), True), {i: i < 4 for i in range(12)})
    assert one_sided.p_value == pytest.approx(2 * 0.5**8)


@pytest.mark.parametrize(
    ("table", "interval"),
    [
        ((59, 6, 16, 80), (-0.1186, -0.0046)),  # Fagerland, Lydersen and Laake (2017), chapter 8: Cavo et al. (2012)
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Fagerland, Lydersen and Laake (2014): Bentur et al. (2009)
        ((14, 5, 0, 22), (0.011, 0.226)),  # Altman et al. (2000), Statistics with Confidence, table 6.2
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe (1998), method 10
    ],
)
def test_interval_of_a_difference_equals_published_values(
    table: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    outcomes = PairedOutcomes(*table)
    assert outcomes.interval == pytest.approx(interval, abs=6e-4)
    assert outcomes.difference == pytest.approx((table[1] - table[2]) / sum(table))
    both, only_first, only_second, neither = table
    low, high = PairedOutcomes(both, only_second, only_first, neither).interval
    assert (-high, -low) == pytest.approx(outcomes.interval)


def test_interval_of_a_difference_covers_the_difference() -> None:
    """For every table of up to 12 pairs, rates of 0 and 1 among them; nothing is known without pairs."""
    for n in range(1, 13):
        for both, first, second in itertools.product(range(n + 1), repeat=3):
            if both + first + second <= n:
                outcomes = PairedOutcomes(both, first, second, n - both - first - second)
                low, high = outcomes.interval
                assert -1 - 1e-12 <= low <= outcomes.difference <= high <= 1 + 1e-12, outcomes
                assert high - low > 0.05, outcomes
    nothing = pair_outcomes({1: True}, {2: True})
    assert math.isnan(nothing.difference)
    assert nothing.interval == (-1.0, 1.0)


def test_p_value_is_1_without_discordant_pairs() -> None:
    outcomes = {i: i < 15 for i in range(30)}
    assert pair_outcomes(outcomes, outcomes).p_value == 1.0
    assert pair_outcomes({}, {}).p_value == 1.0


def test_an_evaluation_of_one_policy_does_not_import_scipy_stats() -> None:
    code = (
        "import sys; from ddp_cli.evaluation import evaluation, statistics; statistics.wilson_interval(3, 4); "
        "assert 'scipy.stats' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
