"""Pages that are written by the commands whose result they show, and films of real episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ddp, ok, ok_json, refused
from report.browser import open_page
from report.conftest import write_recording
from report.test_page import sections

from ddp_cli.commands.report import update_run_page
from ddp_cli.core.checkpoint import load_policy

REACH = "reach_env:Reach-v0"


def test_convert_reports_its_store(tmp_path: Path) -> None:
    write_recording(tmp_path / "r.zarr")
    command = ("convert", tmp_path / "r.zarr", "--rate", 10, "--out", tmp_path / "s.zarr", "--report")
    assert "Name a file that ends in .html" in refused(ddp(*command, tmp_path / "page.txt"))
    assert not (tmp_path / "s.zarr").exists()
    result = ok(ddp(*command, tmp_path / "page.html", "--json"))
    assert json.loads(result.stdout)["episodes"] == 4
    assert "page.html: " in result.stderr
    (section,) = sections(tmp_path / "page.html")
    assert (section["title"], section["rate"], len(section["full"])) == ("s.zarr", 10, 4)


def test_eval_reports_its_result_and_report_films_it(
    reach_run: Path, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("eval", reach_run, "--env", REACH, "-n", 3, "--seed", 5, "--workers", 1)
    evaluated = ok_json(*command, "--out", "e.json", "--report", "eval.html")
    (section,) = sections(Path("eval.html"))
    (one,) = section["evaluations"]
    assert (one["score"], one["successes"]) == (evaluated["score"], evaluated["successes"])
    assert [episode["score"] for episode in one["episodes"]] == [e["score"] for e in evaluated["episodes"]]
    assert section["place"] == "agent_pos"
    ok(ddp("report", "e.json", "--film", "2", "--out", "film.html"))
    (one,) = sections(Path("film.html"))[0]["evaluations"]
    assert list(one["films"]) == ["5", "6"]
    assert all(film["agrees"] for film in one["films"].values())
    with open_page(browser, tmp_path / "film.html") as opened:
        opened.page.locator(".step", has_text="of 12").wait_for()  # before every action, and after the last
        for _ in range(3):
            opened.page.keyboard.press("ArrowRight")
        assert opened.step() == 3
        assert opened.frame() == pytest.approx([200] * 3, abs=6)


def test_a_policy_shows_its_proof(reach_run: Path, browser: Any, tmp_path: Path) -> None:
    ok(ddp("export", reach_run, "--out", tmp_path / "policy"))
    ok(ddp("report", tmp_path / "policy", reach_run, "--out", tmp_path / "page.html"))
    run, policy = sections(tmp_path / "page.html")
    assert (run["kind"], policy["kind"]) == ("runs", "policy")
    proof = json.loads((tmp_path / "policy/proof.json").read_text())
    assert (policy["proof"], policy["latency"]) == (proof["words"], proof["latency"])
    assert dict(policy["files"])["policy.json"] == (tmp_path / "policy/policy.json").stat().st_size
    assert [row[0] for row in policy["schema"]] == ["img", "pos", "action"]
    assert policy["normalization"] == []  # it is inside the graph
    with open_page(browser, tmp_path / "page.html") as opened:
        assert proof["words"][0] in opened.text(".kind-policy")


def test_a_checkpoint_shows_what_its_normalizer_does(reach_run: Path, browser: Any, tmp_path: Path) -> None:
    checkpoint = reach_run / "checkpoints/last"
    ok(ddp("report", checkpoint, "--out", tmp_path / "page.html"))
    normalizer = load_policy(checkpoint)[0].normalizer
    rows = {row["label"]: row for row in sections(tmp_path / "page.html")[0]["normalization"]}
    assert list(rows) == ["pos[0]", "pos[1]", "action[0]", "action[1]"]
    for row in rows.values():
        key, column = row["label"][:-3], int(row["label"][-2])
        values = torch.zeros(2, 2)
        values[:, column] = torch.tensor([row["low"], row["high"]])
        normalized = normalizer.normalize(key, values)[:, column]
        torch.testing.assert_close(normalized, torch.tensor([-1.0, 1.0]), atol=1e-4, rtol=0)
    with open_page(browser, tmp_path / "page.html") as opened:
        assert "becomes -1 to 1" in opened.text(".kind-policy")


def test_a_page_that_fails_does_not_end_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    update_run_page(tmp_path)
    assert "report.html' was not updated: " in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
