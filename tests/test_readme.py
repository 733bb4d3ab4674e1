from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.results import FINAL, RESULTS, STARTS, table

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_results_are_those_of_the_evaluations() -> None:
    assert table() in README


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_results_are_whole(path: Path) -> None:
    row = json.loads(path.read_text())
    for found in row["final"].values():
        assert len(found["failures"]) == FINAL - found["successes"]
        assert all(300_000 <= seed < 300_000 + FINAL for seed in found["failures"])
    assert len(row["last"]) == 5
    assert all(0 <= wins <= STARTS for wins in row["last"])
    assert f"ddp train --task {row['task']}" in row["commands"]
