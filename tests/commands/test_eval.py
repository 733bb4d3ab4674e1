"""`ddp eval` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ddp, ok, ok_json, refused

from ddp_cli.commands.eval import compare
from ddp_cli.tasks import TASKS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and episodes that end early: an untrained policy does not succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "lift", TASKS["lift"].model_copy(update={"horizon": 30}))


def test_eval_reports_and_writes(trained: Path) -> None:
    report = ok_json(
        "eval", trained / "lift/tiny", "--episodes", 1, "--workers", 1, "--inference-steps", 1, "--out", "r.json"
    )
    assert report == json.loads(Path("r.json").read_text())
    assert (report["task"], report["first_seed"], report["inference_steps"]) == ("lift", 100000, 1)
    assert 0 <= report["interval_95"][0] <= report["success_rate"] <= report["interval_95"][1] <= 1
    assert "exists" in refused(ddp("eval", trained / "lift/tiny", "--episodes", 1, "--out", "r.json"))


def test_two_checkpoints_are_compared_on_the_same_seeds(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    text = ok(ddp("eval", run, run, "-n", 2, "--workers", 1, "--inference-steps", 1)).stdout
    assert "of 2 episodes both succeed in 0, only the first in 0, only the second in 0: p = 1" in text
    assert "may be due to chance" in text
    report = ok_json("eval", run, run, "-n", 2, "--workers", 1, "--inference-steps", 1)
    assert report["paired"] == {"both": 0, "only_first": 0, "only_second": 0, "neither": 2, "p": 1.0, "differing": []}
    assert "Give one checkpoint, two to compare" in refused(ddp("eval", run, run, run))


def test_seeds_with_different_outcomes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (
        {"episodes": [{"seed": seed, "success": success} for seed, success in outcomes.items()]}
        for outcomes in ({5: True, 6: True, 7: False, 8: False}, {5: True, 6: False, 7: True, 8: False})
    )
    assert compare(one, other)["paired"]["differing"] == [6, 7]
    assert "seeds with different outcomes: 6, 7" in capsys.readouterr().out


def test_last_checkpoints_and_the_best_on_fresh_seeds(trained: Path) -> None:
    report = ok_json("eval", trained / "lift/tiny", "--last", 2, "-n", 1, "--workers", 1, "--inference-steps", 1)
    steps = [r["step"] for r in report["checkpoints"]]
    assert steps == [3, 4]
    assert report["mean"] == report["best"] == 0.0
    assert (report["fresh"]["first_seed"], report["fresh"]["step"]) == (300_000, 4)
    assert "expects a run folder" in refused(ddp("eval", trained, "--last", 2))


def test_a_sweep_evaluates_every_combination_and_plots_it(trained: Path, policy_folder: Path) -> None:
    run = trained / "lift/tiny"
    command = (
        "eval", run, "-n", 1, "--workers", 1, "--sweep", "inference-steps=1,2", "--sweep", "sampler=ddim,dpm",
    )  # fmt: skip
    text = ok(ddp(*command)).stdout
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [
        ["ddim", "1"], ["ddim", "2"], ["dpm", "1"], ["dpm", "2"],
    ]  # fmt: skip
    (image,) = (run / "eval").glob("sweep-step-*-ddim+dpm-1+2-100000x1.png")
    assert image.read_bytes().startswith(b"\x89PNG")
    reports = ok_json(*command, "--seed", 100007, "--out", "s.json")["sweep"]
    assert [(r["sampler"], r["inference_steps"]) for r in reports] == [
        ("ddim", 1), ("ddim", 2), ("dpm", 1), ("dpm", 2),
    ]  # fmt: skip
    assert {r["episodes"][0]["seed"] for r in reports} == {100007}
    assert Path("s.png").is_file()
    Path("s.json").unlink()
    assert "'s.png' exists" in refused(ddp(*command, "--out", "s.json"))
    for sweep, word in (
        ("steps=1", "unknown --sweep setting 'steps'"), ("sampler=", "has no values"),
        ("inference-steps=1,x", "'x' is not"), ("inference-steps=1,101", "101"), ("sampler=ddmi", "ddmi"),
    ):  # fmt: skip
        assert word in refused(ddp("eval", run, "--sweep", sweep))
    positional = ("eval", run, "--sweep", "inference-steps=1", "sampler=ddim")
    assert "--sweep sampler=ddim" in refused(ddp(*positional))
    assert "contradicts --sweep sampler=" in refused(ddp("eval", run, "--sweep", "sampler=dpm", "--sampler", "ddim"))
    assert "whose sampler is fixed" in refused(ddp("eval", policy_folder, "--sweep", "sampler=ddim"))
    assert "one with --sweep" in refused(ddp("eval", run, run, "--sweep", "inference-steps=1"))
