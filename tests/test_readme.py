"""The measured success rates in the documentation are those of the stored evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.results import FINAL_EPISODES, LAST_EPISODES, N_LAST, RESULTS, tables

BENCHMARKS = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text()


def test_the_tables_of_results_match_the_stored_evaluations() -> None:
    for table in tables():
        assert table in BENCHMARKS


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_stored_evaluations_are_complete(path: Path) -> None:
    row = json.loads(path.read_text())
    for run in row["runs"]:
        for summary in run["final"].values():
            assert len(summary["failures"]) == FINAL_EPISODES - summary["successes"]
            assert len(summary.get("scores", range(FINAL_EPISODES))) == FINAL_EPISODES
            assert all(300_000 <= seed < 300_000 + FINAL_EPISODES for seed in summary["failures"])
        assert len(run["last"]) == N_LAST
        assert all(0 <= successes <= LAST_EPISODES for successes in run["last"])
    assert len({run["seed"] for run in row["runs"]}) == len(row["runs"])
    assert f"ddp train --task {row['task']}" in row["commands"]
