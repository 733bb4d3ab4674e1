"""`ddp eval` of two policies: a paired comparison of their episodes, which start from the same seeds."""

from __future__ import annotations

from typing import Any

from ddp_cli import console


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two reports on the same seeds: the difference of their success rates with its interval, an exact paired test, and
    the seeds with different outcomes.
    """
    from ddp_cli.evaluation.statistics import pair_outcomes

    def outcomes(report: dict[str, Any]) -> dict[int, bool]:
        return {episode["seed"]: episode["success"] for episode in report["episodes"]}

    first_outcomes, second_outcomes = outcomes(first), outcomes(second)
    test = pair_outcomes(first_outcomes, second_outcomes)
    common = first_outcomes.keys() & second_outcomes.keys()
    differing = sorted(seed for seed in common if first_outcomes[seed] != second_outcomes[seed])
    low, high = test.interval
    is_approximate = any(report.get("until_ci") for report in (first, second))
    console.result(
        f"of {len(common)} episodes both succeed in {test.both}, only the first in {test.only_first}, only the second "
        f"in {test.only_second}: first minus second {test.difference:+.1%} (95% interval {low:+.1%} to {high:+.1%}"
        f"{', approximate because of --until-ci' if is_approximate else ''}), "
        f"p = {test.p_value:.3g} (exact McNemar test)"
    )
    if differing:
        console.result(f"seeds with different outcomes: {', '.join(map(str, differing))}")
    return {
        "first": first, "second": second,
        "paired": {
            "both": test.both, "only_first": test.only_first, "only_second": test.only_second, "neither": test.neither,
            "difference": test.difference if common else None, "interval_95": [low, high],
            "interval_is_approximate": is_approximate, "p": test.p_value, "differing": differing,
        },
    }  # fmt: skip
