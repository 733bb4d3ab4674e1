"""Evaluation reports: reading, damage, atomic writing."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from ddp_cli.errors import DdpError
from ddp_cli.evaluation.report import read_report, report_name, write_report
from ddp_cli.sim.gymnasium_env import GymnasiumSettings


def write_example(folder: Path, **changes: object) -> Path:
    """A report with `changes`; the value "absent" removes a key."""
    path = folder / "r.json"
    content = {
        "checkpoint": "c", "sampler": "ddim", "inference_steps": 5, "engine": "onnx",
        "episodes": [{"seed": s, "success": s % 3 == 0} for s in range(6)],
    }  # fmt: skip
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v != "absent"}))
    return path


def test_failures_are_the_episodes_without_success(tmp_path: Path) -> None:
    report = read_report(write_example(tmp_path))
    assert report.failures == [1, 2, 4, 5]
    assert (report.sampler, report.inference_steps, report.engine) == ("ddim", 5, "onnx")
    older = read_report(write_example(tmp_path, sampler="absent", inference_steps="absent", engine="absent"))
    assert older.failures == [1, 2, 4, 5]
    assert (older.sampler, older.inference_steps, older.engine) == (None, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"episodes": "absent"},
        {"episodes": 3},
        {"episodes": [{"seed": 1}]},
        {"episodes": [{"seed": "1", "success": False}]},
        {"episodes": [{"seed": -1, "success": False}]},
        {"episodes": [{"seed": 1, "success": 0}]},
        {"checkpoint": None},
        {"sampler": 4},
        {"engine": 4},
        {"inference_steps": "5"},
        {"inference_steps": -5},
        {"env": {}},
        {"env": {"id": 3}},
        {"env": "reach"},
    ],
)
def test_invalid_report_is_rejected(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(DdpError, match=r"r\.json' is not an evaluation report of one checkpoint.*ddp eval"):
        read_report(write_example(tmp_path, **changes))


def test_the_environment_of_a_report_needs_an_id_only(tmp_path: Path) -> None:
    assert read_report(write_example(tmp_path, env=None)).env is None
    settings = GymnasiumSettings.from_json(read_report(write_example(tmp_path, env={"id": "x"})).env)
    assert settings == GymnasiumSettings("x")


def test_other_files_are_rejected(tmp_path: Path) -> None:
    for text in ("", "[1]", "{}", "null", "\x00"):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(DdpError, match="not an evaluation report"):
            read_report(tmp_path / "r.json")
    with pytest.raises(DdpError, match="no file"):
        read_report(tmp_path / "none.json")
    with pytest.raises(DdpError, match="not an evaluation report"):
        read_report(tmp_path)


def test_checkpoint_is_found_after_the_run_was_moved(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "eval").mkdir()
    report = read_report(
        write_example(tmp_path / "run" / "eval", checkpoint="/elsewhere/run/checkpoints/step-00000004")
    )
    assert report.checkpoint_path() == checkpoint
    report.check_checkpoint(checkpoint)
    with pytest.raises(DdpError, match="evaluates the checkpoint '/elsewhere"):
        report.check_checkpoint(tmp_path)


def test_a_link_in_an_older_report_is_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    """The link may name another checkpoint by now."""
    path = write_example(tmp_path, checkpoint="runs/lift/a/checkpoints/last", step=400)
    assert read_report(path).checkpoint == "runs/lift/a/checkpoints/step-00000400"
    assert read_report(write_example(tmp_path, checkpoint="exported/last", step=4)).checkpoint == "exported/last"
    copied = tmp_path / "run/checkpoints/best"  # where links were followed
    copied.mkdir(parents=True)
    assert read_report(write_example(tmp_path, checkpoint=str(copied), step=4)).checkpoint == str(copied)


def test_reports_of_other_devices_and_numbers_of_episodes_have_other_names() -> None:
    report = {
        "checkpoint": "c", "sampler": "ddim", "inference_steps": 5, "engine": "torch", "device": "cpu", "first_seed": 7,
        "episodes": [{}, {}], "lost": [], "until_ci": None,
    }  # fmt: skip
    assert report_name(report) == "c-ddim5-torch-7x2.json"
    assert report_name(report | {"device": "cuda"}) == "c-ddim5-torch-cuda-7x2.json"
    assert report_name(report | {"episodes": [{}], "lost": [8]}) == "c-ddim5-torch-7x2.json"


@pytest.mark.parametrize(
    ("engine", "device", "expected"),
    [("torch", "cpu", "cpu"), ("torch", "cuda", "auto"), ("onnx", "absent", "cpu"), ("torch", "absent", "auto")],
)
def test_episodes_run_again_where_they_ran(engine: str, device: str, expected: str, tmp_path: Path) -> None:
    assert read_report(write_example(tmp_path, engine=engine, device=device)).rerun_device == expected


def test_failed_write_keeps_the_old_report(tmp_path: Path) -> None:
    write_report(tmp_path / "eval" / "r.json", {"a": 1})
    with pytest.raises(TypeError):
        write_report(tmp_path / "eval" / "r.json", {"a": object()})
    assert json.loads((tmp_path / "eval" / "r.json").read_text()) == {"a": 1}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(OSError, match="large"):
            write_report(tmp_path / "eval" / "r.json", {"a": "b" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [p.name for p in (tmp_path / "eval").iterdir()] == ["r.json"]
