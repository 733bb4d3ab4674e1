"""The seeds of each purpose."""

from __future__ import annotations

import pytest

from ddp_cli.seeds import purposes_of_seeds, unused_seed


@pytest.mark.parametrize(
    ("seeds", "purposes"),
    [
        (range(1000), []),
        (range(999, 1001), ["collect"]),
        (range(99_990, 100_010), ["collect", "eval"]),
        (range(199_999, 200_001), ["eval", "training"]),
        (range(299_999, 300_000), ["training"]),
        (range(10**9, 10**9 + 1), ["report"]),
    ],
)
def test_purposes_of_seeds(seeds: range, purposes: list[str]) -> None:
    assert purposes_of_seeds(seeds) == purposes


@pytest.mark.parametrize("start", [0, 299_950, 299_951, 300_000, 300_049, 300_050, 10**6])
def test_unused_seeds_do_not_overlap_the_used_ones(start: int) -> None:
    used = range(start, start + 50)
    first = unused_seed(used)
    assert not set(used) & set(range(first, first + 50))
    assert first == (300_000 if start in (0, 299_950, 300_050, 10**6) else start + 50)
