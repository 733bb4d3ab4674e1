"""The trained policy in sample_data: it works at once, and no change makes it worse unnoticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ddp, ok, ok_json

from ddp_cli.evaluation.statistics import wilson
from ddp_cli.video.video import read_video

POLICY = Path(__file__).parents[1] / "sample_data" / "square-policy"
SEED, EPISODES, SUCCEEDED = 100_000, 10, 9
"""As it was when it was trained: starts, and how many of them succeeded."""


def test_it_succeeds_as_often_as_when_it_was_trained() -> None:
    found = ok_json("eval", POLICY, "--episodes", EPISODES, "--seed", SEED, "--workers", 2)
    assert found["success_rate"] >= wilson(SUCCEEDED, EPISODES)[0]


def test_a_video_of_a_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A start with room to spare: contacts enlarge the last digit, which differs between processors.
    said = ok(ddp("rollout", POLICY, "--seed", 100_002, "--video", "out.mp4", "--json")).stdout
    [episode] = json.loads(said)["episodes"]
    assert episode["success"]
    assert len(read_video(Path("out.mp4"))) > episode["steps"]  # it goes on for a moment


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in POLICY.iterdir()) <= 8_000_000
    assert not (POLICY / "train_state.pt").exists()
