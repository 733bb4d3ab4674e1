"""`ddp inspect`, `ddp preview` and `ddp plot` as a user runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Recorded, ddp, ok, ok_json, refused


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_inspect_describes_every_kind_of_source(
    lift_demos: Path, lift_zarr: Path, trained: Path, policy_folder: Path
) -> None:
    run = trained / "lift" / "tiny"
    kinds = {
        lift_demos: "HDF5", lift_zarr: "store", run: "checkpoint", run / "checkpoints" / "last": "checkpoint",
        policy_folder: "exported policy",
    }  # fmt: skip
    for source, kind in kinds.items():
        described = ok_json("inspect", source)
        assert kind in described["kind"]
        assert described["task"] == "lift"
        text = ok(ddp("inspect", source)).stdout
        assert str(source) in text
        assert "lift" in text


def test_inspect_takes_a_task_file(door: Recorded) -> None:
    assert "Door (task door)" in ok(ddp("inspect", door.demos)).stdout
    assert ok_json("inspect", door.demos, "--task", door.file)["task"] == "door"


@pytest.mark.parametrize("name", ["nowhere", "empty", "notes.txt"])
def test_inspect_refuses_what_it_does_not_know(name: str, tmp_path: Path) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("hello")
    assert f"'{name}'" in refused(ddp("inspect", name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes.txt"]


def test_inspect_explains_parts_of_policies_and_runs_without_checkpoints(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    assert "Name its folder" in refused(ddp("inspect", run / "config.json"))
    assert "--task does not apply" in refused(ddp("inspect", run, "--task", "lift"))
    Path("r.json").write_text("{}")
    assert "holds no recording and no policy. Reports: `ddp report r.json`" in refused(ddp("inspect", "r.json"))
    Path("new/checkpoints").mkdir(parents=True)
    Path("new/config.json").write_text("{}")
    line = refused(ddp("inspect", "new"))
    assert "has no checkpoint yet" in line
    task = Path.cwd()  # the folder of the run is in that of its task, which is in that of all runs
    assert f"`ddp train --task {task.name} --name new --runs {task.parent} --resume`" in line


def test_inspect_of_a_published_checkpoint_names_import() -> None:
    Path("model.ckpt").write_bytes(b"PK")
    assert "ddp import model.ckpt" in refused(ddp("inspect", "model.ckpt"))


def test_preview_writes_an_image_once(lift_zarr: Path) -> None:
    assert "preview.png" in ok(ddp("preview", lift_zarr)).stdout
    assert Path("preview.png").read_bytes().startswith(b"\x89PNG")
    assert "--overwrite" in refused(ddp("preview", lift_zarr))
    assert "'p.jpg'" in refused(ddp("preview", lift_zarr, "--out", "p.jpg"))
    assert "no store 'none.zarr'" in refused(ddp("preview", "none.zarr", "--out", "p.png"))


@pytest.mark.slow
def test_plot_draws_runs_together(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    assert ok(ddp("plot", run, run, "--out", "both.png")).stdout.strip() == "both.png"
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")
    assert "--overwrite" in refused(ddp("plot", run, "--out", "both.png"))
    formula = Path("$x^$_{")  # nothing that matplotlib could typeset
    formula.mkdir()
    (formula / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    assert ok(ddp("plot", formula, "--out", "formula.png")).stdout.strip() == "formula.png"
    assert ok(ddp("plot", run)).stdout.strip() == str(run / "curves.png")
    assert "'nowhere'" in refused(ddp("plot", "nowhere"))
    assert "p.jpg" in refused(ddp("plot", run, "--out", "p.jpg"))
