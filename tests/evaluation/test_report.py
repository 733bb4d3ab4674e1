"""What can be read again of a report of `ddp eval`."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from ddp_cli.errors import DdpError
from ddp_cli.evaluation.report import read_report, write_report


def report(folder: Path, **changes: object) -> Path:
    path = folder / "r.json"
    content = {
        "checkpoint": "c", "sampler": "ddim", "inference_steps": 5, "engine": "onnx",
        "episodes": [{"seed": s, "success": s % 3 == 0} for s in range(6)],
    }  # fmt: skip
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v != "absent"}))
    return path


def test_failures_are_the_episodes_without_success(tmp_path: Path) -> None:
    found = read_report(report(tmp_path))
    assert found.failures == [1, 2, 4, 5]
    assert (found.sampler, found.inference_steps, found.engine) == ("ddim", 5, "onnx")
    older = read_report(report(tmp_path, sampler="absent", inference_steps="absent", engine="absent"))
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
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(DdpError, match=r"r\.json' is no report of an evaluation of one checkpoint.*ddp eval"):
        read_report(report(tmp_path, **changes))


def test_other_files_are_no_reports(tmp_path: Path) -> None:
    for text in ("", "[1]", "{}", "null", "\x00"):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(DdpError, match="no report"):
            read_report(tmp_path / "r.json")
    with pytest.raises(DdpError, match="no file"):
        read_report(tmp_path / "none.json")
    with pytest.raises(DdpError, match="no report"):
        read_report(tmp_path)


def test_a_report_knows_its_checkpoint_after_the_run_has_moved(tmp_path: Path) -> None:
    here = tmp_path / "run" / "checkpoints" / "step-00000004"
    here.mkdir(parents=True)
    (tmp_path / "run" / "eval").mkdir()
    found = read_report(report(tmp_path / "run" / "eval", checkpoint="/elsewhere/run/checkpoints/step-00000004"))
    assert found.place() == here
    found.check_of(here)
    with pytest.raises(DdpError, match="is about the checkpoint '/elsewhere"):
        found.check_of(tmp_path)


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_report(tmp_path / "eval" / "r.json", {"a": 1})
    with pytest.raises(TypeError):
        write_report(tmp_path / "eval" / "r.json", {"a": object()})
    assert json.loads((tmp_path / "eval" / "r.json").read_text()) == {"a": 1}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="large"):
            write_report(tmp_path / "eval" / "r.json", {"a": "b" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in (tmp_path / "eval").iterdir()] == ["r.json"]
