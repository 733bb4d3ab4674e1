"""Every command as a user runs it, and what it says when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import DOOR, TINY, ddp, ok, ok_json, refused

from ddp_cli.commands.eval import compare
from ddp_cli.core.checkpoint import file_hash
from ddp_cli.tasks import TASKS
from ddp_cli.video.video import read_video

SETTINGS = [x for key, value in TINY.items() for x in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and episodes that end early: an untrained policy never gets anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "lift", dataclasses.replace(TASKS["lift"], horizon=30))


def test_help_names_every_command() -> None:
    text = ok(ddp("--help")).stdout
    for command in ("collect", "convert", "train", "eval", "rollout", "export", "serve", "doctor"):
        assert f"  {command} " in text
    assert ddp("--version").stdout.startswith("ddp ")


def test_eval_reports_and_writes(trained: Path) -> None:
    report = ok_json(
        "eval", trained / "lift/tiny", "--episodes", 1, "--workers", 1, "--inference-steps", 1, "--out", "r.json"
    )
    assert report == json.loads(Path("r.json").read_text())
    assert (report["task"], report["first_seed"], report["inference_steps"]) == ("lift", 100000, 1)
    assert 0 <= report["interval_95"][0] <= report["success_rate"] <= report["interval_95"][1] <= 1
    assert "exists" in refused(ddp("eval", trained / "lift/tiny", "--episodes", 1, "--out", "r.json"))


def test_rollout_replays_the_episode_of_an_evaluation_and_films_it(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    evaluated = ok_json("eval", run, "--episodes", 2, "--seed", 100002, "--workers", 1)["episodes"][1]
    rolled = ok_json("rollout", run, "--seed", 100003, "--video", "v.mp4")["episodes"][0]
    unfilmed = ok_json("rollout", run, "--seed", 100003)["episodes"][0]
    for key in ("seed", "success", "held", "steps"):
        assert rolled[key] == unfilmed[key] == evaluated[key]
    frames = read_video(Path("v.mp4"))
    assert frames.shape == (rolled["steps"] + 1, 512, 1024, 3)
    assert "exists" in refused(ddp("rollout", run, "--video", "v.mp4"))


def test_two_checkpoints_are_compared_on_the_same_starts(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    text = ok(ddp("eval", run, run, "-n", 2, "--workers", 1, "--inference-steps", 1)).stdout
    assert "of 2 starts both succeed on 0, only the first on 0, only the second on 0: p = 1" in text
    assert "may be chance" in text
    report = ok_json("eval", run, run, "-n", 2, "--workers", 1, "--inference-steps", 1)
    assert report["paired"] == {"both": 0, "only_first": 0, "only_second": 0, "neither": 2, "p": 1.0, "differing": []}
    assert "Give one checkpoint, two to compare" in refused(ddp("eval", run, run, run))


def test_starts_that_end_otherwise_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (
        {"episodes": [{"seed": seed, "success": success} for seed, success in ends.items()]}
        for ends in ({5: True, 6: True, 7: False, 8: False}, {5: True, 6: False, 7: True, 8: False})
    )
    assert compare(one, other)["paired"]["differing"] == [6, 7]
    assert "starts that end otherwise: 6, 7" in capsys.readouterr().out


def test_the_last_checkpoints_and_the_best_on_fresh_starts(trained: Path) -> None:
    report = ok_json("eval", trained / "lift/tiny", "--last", 2, "-n", 1, "--workers", 1, "--inference-steps", 1)
    steps = [r["step"] for r in report["checkpoints"]]
    assert steps == [3, 4]
    assert report["mean"] == report["best"] == 0.0
    assert (report["fresh"]["first_seed"], report["fresh"]["step"]) == (300_000, 4)
    assert "takes the folder of a run" in refused(ddp("eval", trained, "--last", 2))


def test_a_sweep_measures_every_setting_on_the_same_starts_and_draws_it(trained: Path, policy_folder: Path) -> None:
    run = trained / "lift/tiny"
    asked = ("eval", run, "-n", 1, "--workers", 1, "--sweep", "inference-steps=1,2", "sampler=ddim,dpm")
    text = ok(ddp(*asked)).stdout
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [
        ["ddim", "1"], ["ddim", "2"], ["dpm", "1"], ["dpm", "2"],
    ]  # fmt: skip
    (picture,) = (run / "eval").glob("sweep-step-*-ddim+dpm-1+2-100000x1.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    reports = ok_json(*asked, "--seed", 100007, "--out", "s.json")["sweep"]
    assert [(r["sampler"], r["inference_steps"]) for r in reports] == [
        ("ddim", 1), ("ddim", 2), ("dpm", 1), ("dpm", 2),
    ]  # fmt: skip
    assert {r["episodes"][0]["seed"] for r in reports} == {100007}
    assert Path("s.png").is_file()
    Path("s.json").unlink()
    assert "'s.png' exists" in refused(ddp(*asked, "--out", "s.json"))
    for sweep, word in (
        ("steps=1", "'steps' cannot be swept"), ("sampler=", "has no values"), ("inference-steps=1,x", "'x' is not"),
        ("inference-steps=1,101", "101"), ("sampler=ddmi", "ddmi"),
    ):  # fmt: skip
        assert word in refused(ddp("eval", run, "--sweep", sweep))
    assert "contradicts --sweep sampler=" in refused(ddp("eval", run, "--sweep", "sampler=dpm", "--sampler", "ddim"))
    assert "whose sampler is decided" in refused(ddp("eval", policy_folder, "--sweep", "sampler=ddim"))
    assert "one with --sweep" in refused(ddp("eval", run, run, "--sweep", "inference-steps=1"))


def test_export_prints_the_largest_difference(trained: Path, lift_zarr: Path) -> None:
    text = ok(ddp("export", trained / "lift/tiny", "--out", "policy", "--data", lift_zarr, "--episodes", 0)).stdout
    assert "actions: largest difference from torch" in text
    assert Path("policy/denoiser.onnx").exists()
    assert "exists" in refused(ddp("export", trained / "lift/tiny", "--out", "policy"))


def test_doctor_finds_this_machine_well() -> None:
    findings = ok_json("doctor")
    assert {"python", "mujoco", "rendering with egl", "simulator", "GPU", "memory"} <= {f["what"] for f in findings}


def test_doctor_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddp_cli.commands import diagnosis

    monkeypatch.setattr(diagnosis.importlib.metadata, "version", lambda name: "4.0.0" if name == "mujoco" else "1.5.2")
    monkeypatch.setattr(diagnosis, "_python", lambda _: (False, "libEGL.so.1 is missing"))
    monkeypatch.setattr(diagnosis, "choose_gl_backend", lambda: "")
    result = ddp("doctor")
    assert result.exit_code == 1
    assert 'cure for mujoco: robosuite 1.5.2 does not work with it: pip install "mujoco>=3.3,<3.10"' in result.stdout
    assert "cure for rendering with egl: sudo apt-get install" in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["collect", "--task", "sqare"], ["'sqare'", "did you mean 'square'", "lift, can, square"]),
        (["train", "--task", "pickplace"], ["'pickplace'", "Valid tasks"]),
        (["train", "--task", "lift", "--data", "none.zarr"], ["no store 'none.zarr'", "ddp convert"]),
        (["train", "--task", "lift", "--preset", "papr"], ["'papr'", "did you mean 'paper'"]),
        (["train", "--task", "lift", "--obs", "depth"], ["obs", "'depth'", "image", "state"]),
        (["train", "--task", "lift", "--set", "n_embb=3"], ["'n_embb'", "did you mean 'n_emb'"]),
        (["train", "--task", "lift", "--set", "lr"], ["'lr'", "--set key=value"]),
        (["train", "--task", "lift", "--config", "none.json"], ["no file 'none.json'"]),
        (["train", "--task", "lift", "--device", "abacus"], ["'abacus'", "auto"]),
        (["train", "--task", "lift", "--resume"], ["no run of the task 'lift'", "ddp train --task lift"]),
        (["train", "--task", "lift", "--resume", "--steps", "5"], ["--steps", "--resume"]),
        (["train", "--task", "none.json"], ["no file 'none.json'", '"env_name": "Door"']),
        (["eval", "--task", "none.json"], ["no file 'none.json'"]),
        (["collect", "--task", "none.json"], ["no file 'none.json'"]),
        (["convert", "none.hdf5", "--task", "none.json"], ["no file 'none.json'"]),
        (["convert", "none.hdf5", "--obs", "stat"], ["'stat'", "did you mean 'state'", "image, state"]),
        (["convert", "none.hdf5"], ["no file 'none.hdf5'", "ddp collect"]),
        (["eval"], ["no trained run", "ddp train"]),
        (["eval", "none"], ["no checkpoint folder 'none'"]),
        (["rollout", "--video", "out.mp4"], ["no trained run"]),
        (["export", "--format", "onnx"], ["no trained run"]),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(args: list[str], words: list[str], tmp_path: Path) -> None:
    line = refused(ddp(*args))
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_a_described_task_has_no_demonstrator_no_samples_and_no_run_yet(tmp_path: Path) -> None:
    Path("door.json").write_text(json.dumps(DOOR))
    assert "no scripted demonstrator for 'door', only for lift, can, square" in refused(
        ddp("collect", "--task", "door.json")
    )
    assert "no store 'data/door.zarr'" in refused(ddp("train", "--task", "door.json"))
    assert "no trained run of the task 'door'" in refused(ddp("eval", "--task", "door.json"))
    assert "no run of the task 'door'" in refused(ddp("train", "--task", "door.json", "--resume"))
    assert [p.name for p in tmp_path.iterdir()] == ["door.json"]


def test_a_run_is_not_resumed_as_another_task(trained: Path) -> None:
    Path("other.json").write_text(json.dumps(DOOR | {"name": "lift_side", "env_name": "Lift"}))
    shutil.copytree(trained / "lift" / "tiny", "runs/lift_side/tiny", symlinks=True)
    said = refused(ddp("train", "--task", "other.json", "--resume"))
    assert 'of another task than \'other.json\' describes: name "lift" instead of "lift_side"' in said


def test_a_wrong_render_profile_is_refused_before_any_work(lift_demos: Path, tmp_path: Path) -> None:
    assert "full, fast" in refused(ddp("convert", lift_demos, "--out", "s.zarr", "--render", "ultra"))
    assert list(tmp_path.iterdir()) == []


def test_a_bad_file_leaves_nothing(tmp_path: Path) -> None:
    Path("x.hdf5").write_text("hello")
    assert "'x.hdf5' is not an HDF5 file" in refused(ddp("convert", "x.hdf5", "--out", "s.zarr"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]


def test_existing_outputs_are_kept(lift_demos: Path, lift_zarr: Path) -> None:
    Path("d.hdf5").write_text("precious")
    assert "--overwrite" in refused(ddp("collect", "--task", "lift", "--out", "d.hdf5"))
    assert Path("d.hdf5").read_text() == "precious"
    assert "--overwrite" in refused(ddp("convert", lift_demos, "--out", lift_zarr))


def test_overwrite_replaces_only_its_own_kind(lift_demos: Path, trained: Path) -> None:
    Path("precious").mkdir()
    Path("precious/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    for command in (["convert", lift_demos], ["export", trained / "lift/tiny"]):
        assert "folder of something else" in refused(ddp(*command, "--out", "precious", "--overwrite"))
        assert "is a file" in refused(ddp(*command, "--out", "file", "--overwrite"))
    assert Path("precious/notes.txt").read_text() == Path("file").read_text() == "mine"


def test_doctor_finds_a_back_end_that_loads_but_does_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddp_cli.commands import diagnosis

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(diagnosis, "_python", lambda code: ("osmesa" in code or "egl" not in code, "no display"))
    monkeypatch.setattr(diagnosis, "choose_gl_backend", lambda: "egl")
    assert "cure for MUJOCO_GL: export MUJOCO_GL=osmesa" in ddp("doctor").stdout


def test_missing_weights_are_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    for command in ("eval", "rollout", "export"):
        assert "no model.safetensors" in refused(ddp(command, checkpoint))


@pytest.mark.parametrize("command", ["collect", "convert", "train", "rollout", "rollout --grid 1x2"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    command: str, lift_demos: Path, lift_zarr: Path, trained: Path, tmp_path: Path
) -> None:
    """The kernel refuses to write files beyond 20 kB, in a real process."""
    arguments = {
        "collect": ["--task", "lift", "--episodes", "1", "--out", "out.hdf5", "--workers", "1"],
        "convert": [lift_demos, "--out", "out.zarr", "--workers", "1"],
        "train": ["--task", "lift", "--data", lift_zarr, "--steps", "1", "--name", "x", *SETTINGS],
        "rollout": [trained / "lift/tiny", "--video", "out.mp4", "--inference-steps", "1"],
    }[command.split(maxsplit=1)[0]]
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "import ddp_cli.cli; ddp_cli.cli.app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-2000:]
    assert "disk is full" in errors[0]
    assert "Traceback" not in done.stderr
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".hdf5", ".safetensors", ".mp4", ".partial")]
    assert left == []
    assert not (tmp_path / "out.zarr").exists()
    assert not (tmp_path / "out.zarr.partial").exists()


def test_ctrl_c_saves_and_resume_goes_on(lift_zarr: Path) -> None:
    args = ["train", "--task", "lift", "--data", str(lift_zarr), "--steps", "100000", "--name", "long", *SETTINGS]
    process = subprocess.Popen([sys.executable, "-m", "ddp_cli.cli", *args], stderr=subprocess.PIPE, text=True)
    metrics = Path("runs/lift/long/metrics.jsonl")
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "--name long --resume" in stderr
    assert "Traceback" not in stderr
    saved = json.loads(Path("runs/lift/long/checkpoints/last/config.json").read_text())
    assert 0 < saved["step"] < 100000

    # shorten the run, so that going on comes to an end
    state = Path("runs/lift/long/checkpoints/last/train_state.pt")
    import torch

    content = torch.load(state, weights_only=True)
    torch.save(content | {"total": saved["step"] + 2}, state)
    saved["sha256"][state.name] = file_hash(state)
    state.with_name("config.json").write_text(json.dumps(saved))
    result = ok_json("train", "--task", "lift", "--name", "long", "--resume")
    assert result["steps"] == saved["step"] + 2


def test_ctrl_c_in_other_commands_exits_130(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    import ddp_cli.evaluation.rollout

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ddp_cli.evaluation.rollout, "run_episode", interrupt)
    result = ddp("rollout", trained / "lift/tiny")
    assert result.exit_code == 130
    assert "Traceback" not in result.output
