"""`ddp rollout` as a user runs it: grids, failures of an evaluation, GIF files."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ddp, ok, ok_json, read_video, refused

from ddp_cli.evaluation.rollout import EpisodeResult
from ddp_cli.tasks import TASKS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "lift", dataclasses.replace(TASKS["lift"], horizon=5))


def report(run: Path, name: str, successes: dict[int, bool], **more: object) -> Path:
    folder = (run / "checkpoints" / "best").resolve()
    path = Path(name)
    episodes = [{"seed": seed, "success": success} for seed, success in successes.items()]
    path.write_text(json.dumps({"checkpoint": str(folder), "episodes": episodes, **more}))
    return path


def names() -> list[str]:
    return sorted(p.name for p in Path().iterdir())


def test_a_grid_is_one_video_of_consecutive_seeds(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    result = ddp("rollout", run, "--video", "g.gif", "--grid", "1x2", "--seed", 7)
    assert "0 of 2 episodes succeeded\nvideo: g.gif\n" in ok(result).stdout
    frames = read_video(Path("g.gif"))
    assert frames.shape == (4, 224, 448, 3)  # steps 0, 2, 4 and 5
    red = (frames[-1, 100, [2, 226]].astype(int) - (205, 45, 45)).max()
    assert red < 40
    result = ok_json("rollout", run, "--video", "g.mp4", "--grid", "2x1", "--seed", 7)
    assert [e["seed"] for e in result["episodes"]] == [7, 8]
    assert (result["video"], result["videos"]) == ("g.mp4", ["g.mp4"])
    assert read_video(Path("g.mp4")).shape == (6, 1024, 512, 3)


def test_failures_are_recorded_as_they_were_evaluated(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    ok_json(
        "eval", run, "--episodes", 2, "--seed", 3, "--workers", 1, "--sampler", "ddim", "--inference-steps", 1,
        "--out", "r.json",
    )  # fmt: skip
    evaluated = json.loads(Path("r.json").read_text())
    result = ok_json("rollout", "--video", "v/out.gif", "--failures", "r.json")  # the report's checkpoint
    assert result["checkpoint"] == evaluated["checkpoint"]
    assert (result["video"], result["videos"]) == (None, ["v/out-3.gif", "v/out-4.gif"])
    assert [(e["seed"], e["steps"]) for e in result["episodes"]] == [(3, 5), (4, 5)]
    for name in ("v/out-3.gif", "v/out-4.gif"):
        assert read_video(Path(name)).shape == (4, 224, 448, 3)
    assert "'v/out-3.gif' exists" in refused(ddp("rollout", run, "--video", "v/out.gif", "--failures", "r.json"))


def test_the_report_sets_sampler_steps_and_engine_unless_overridden(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddp_cli.errors import DdpError
    from ddp_cli.inference import agent

    agent_arguments: list[tuple] = []

    def record(*args: object) -> None:
        agent_arguments.append(args[1:])
        raise DdpError("enough")

    monkeypatch.setattr(agent, "load_agent", record)
    monkeypatch.setattr("ddp_cli.inference.device.choose_device", lambda name: name)
    run = trained / "lift" / "tiny"
    path = report(run, "r.json", {1: False, 2: True}, sampler="ddpm", inference_steps=7, engine="onnx")
    command = ["rollout", run, "--video", "out.mp4", "--failures", path]
    for more in ([], ["--sampler", "ddim"], ["--sampler", "ddpm"], ["--inference-steps", 3], ["--engine", "torch"]):
        assert "enough" in refused(ddp(*command, *more))
    assert agent_arguments == [
        ("cpu", "ddpm", 7, "onnx"), ("cpu", "ddim", 2, "onnx"), ("cpu", "ddpm", 7, "onnx"), ("cpu", "ddpm", 3, "onnx"),
        ("cpu", "ddpm", 7, "torch"),
    ]  # fmt: skip
    agent_arguments.clear()
    path = report(run, "r.json", {1: False}, sampler="ddim", inference_steps=7, engine="onnx")
    assert "enough" in refused(ddp(*command, "--sampler", "ddpm"))
    assert agent_arguments == [("cpu", "ddpm", 100, "onnx")]


def test_a_grid_shows_the_first_failures(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    path = report(run, "r.json", {1: True, 2: False, 3: False, 4: False})
    result = ddp("rollout", run, "--video", "g.mp4", "--grid", "1x2", "--failures", path, "--json")
    assert "the first 2 of 3 failures" in ok(result).stderr
    assert [e["seed"] for e in json.loads(result.stdout)["episodes"]] == [2, 3]
    assert names() == ["g.mp4", "r.json"]


def test_recording_continues_after_a_failure_that_now_succeeds(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(_sim: object, _agent: object, seed: int, _path: Path) -> EpisodeResult:
        return EpisodeResult(seed, True, True, 3, 1.0)

    monkeypatch.setattr("ddp_cli.evaluation.filming.record_episode", record)
    run = trained / "lift" / "tiny"
    result = ok_json("rollout", run, "--video", "o.mp4", "--failures", report(run, "r.json", {1: False, 2: False}))
    assert [e["seed"] for e in result["episodes"]] == [1, 2]


def test_without_failures_nothing_is_written(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    command = ["rollout", run, "--video", "v/out.mp4", "--failures", report(run, "r.json", {1: True, 2: True})]
    assert ok(ddp(*command)).stdout == "no failures in 'r.json': nothing to record\n"
    result = ok_json(*command, "--grid", "3x3")
    assert (result["episodes"], result["video"], result["videos"]) == ([], None, [])
    assert names() == ["r.json"]


def test_a_report_about_another_checkpoint_is_refused(trained: Path, checkpoint: Path) -> None:
    path = report(trained / "lift" / "tiny", "r.json", {1: False})
    message = refused(ddp("rollout", checkpoint, "--video", "out.mp4", "--failures", path))
    assert "'r.json' evaluates the checkpoint" in message
    assert f"not '{checkpoint}'" in message
    assert names() == ["checkpoint", "r.json"]


def test_ctrl_c_while_recording_leaves_no_partial_video(trained: Path) -> None:
    # A shell that runs the tests in the background makes them, and their child processes, ignore Ctrl-C.
    code = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); import ddp_cli.cli; ddp_cli.cli.app()"
    command = [sys.executable, "-c", code, "rollout", str(trained / "lift/tiny"), "--video", "out.mp4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while ".out.mp4.partial.mp4" not in names() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert names() == [".out.mp4.lock", ".out.mp4.partial.mp4"]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the encoder receives it as well
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.endswith("interrupted\n")
    assert "Traceback" not in stderr
    assert names() == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--video", "out.avi"], ["'out.avi'", ".mp4, .mov, .mkv, .gif"]),
        (["--video", "out"], ["'out'", ".gif"]),
        (["--grid", "3x3"], ["--grid needs a video", "--video"]),
        (["--failures", "r.json"], ["--failures needs a video"]),
        (["--video", "out.mp4", "--grid", "3by3"], ["'3by3'", "3x3"]),
        (["--video", "out.mp4", "--grid", "3x9"], ["'3x9'", "at most 8x8"]),
        (["--video", "out.mp4", "--grid", "3x3", "--attempts", "2"], ["--grid does not go with --attempts"]),
        (["--video", "out.mp4", "--failures", "r.json", "--attempts", "2"], ["--failures does not go with --attempts"]),
        (["--video", "out.mp4", "--failures", "r.json", "--seed", "2"], ["--failures", "--seed"]),
        (["--video", "out.mp4", "--failures", "none.json"], ["no file 'none.json'", "ddp eval"]),
        (["--video", "out.mp4", "--failures", "bad.json"], ["'bad.json' is not an evaluation report"]),
        (["--video", "out.mp4", "--failures", "two.json"], ["'two.json' is not an evaluation report of one"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(args: list[str], words: list[str], trained: Path) -> None:
    report(trained / "lift" / "tiny", "r.json", {1: False})
    Path("bad.json").write_text("{}")
    Path("two.json").write_text('{"first": {"checkpoint": "c", "episodes": []}, "second": {}, "paired": {}}')
    line = refused(ddp("rollout", trained / "lift" / "tiny", *args))
    for word in words:
        assert word in line
    assert names() == ["bad.json", "r.json", "two.json"]
