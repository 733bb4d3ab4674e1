"""`ddp train` as a user runs it: what it writes, and what it refuses. (Interruptions: tests/training.)"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, ddp, ok, ok_json, read_video, refused

from ddp_cli.core.checkpoint import load_policy, save_checkpoint
from ddp_cli.errors import SimulatorError
from ddp_cli.tasks import TASKS

pytestmark = pytest.mark.slow

SETTINGS = [x for key, value in {**TINY, "num_inference_steps": 1}.items() for x in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and episodes that end early: an untrained policy does not succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "lift", dataclasses.replace(TASKS["lift"], horizon=10))


def command(store: Path, *args: object) -> list[object]:
    return ["train", "--task", "lift", "--data", store, "--preset", "laptop", "--name", "x", *SETTINGS, *args]


def metrics(name: str) -> list[float]:
    lines = [json.loads(line) for line in Path("runs/lift/x/metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_episodes_are_evaluated_and_recorded_during_training(lift_zarr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ddp", "train", "--task", "lift"])
    result = ddp(*command(lift_zarr, "--steps", 4, "--eval-every", 2, "--set", "eval_episodes=2", "--keep", 1))
    ok(result)
    assert "step-00000002: 0 of 2 succeeded (0% to 66%)" in result.stderr
    run = Path("runs/lift/x")
    assert metrics("success_rate") == [0.0, 0.0]
    assert sorted(p.name for p in (run / "videos").iterdir()) == ["step-00000002.mp4", "step-00000004.mp4"]
    assert read_video(run / "videos/step-00000004.mp4").shape == (11, 256, 512, 3)
    report = json.loads((run / "eval/step-00000004-training.json").read_text())
    assert [e["seed"] for e in report["episodes"]] == [200_000, 200_001]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best", "last", "step-00000004"]
    page = (run / "report.html").read_text()
    assert '"step":4,"rate":0.0' in page  # the last evaluation
    assert page.count('<script type="text/plain" id="video-') == 2  # its film, and the one before
    assert json.loads((run / "config.json").read_text())["command"] == "ddp train --task lift"


def test_a_failed_video_keeps_the_success_rate(lift_zarr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no encoder")

    monkeypatch.setattr("ddp_cli.evaluation.evaluation.record_in_subprocess", broken)
    result = ddp(*command(lift_zarr, "--steps", 1, "--eval-every", 1, "--set", "eval_episodes=1"))
    ok(result)
    assert "step-00000001 was not filmed: RuntimeError: no encoder" in result.stderr
    assert metrics("success_rate") == [0.0]


def test_a_file_system_without_symbolic_links_takes_a_run(lift_zarr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # as on exFAT

    monkeypatch.setattr(os, "symlink", unsupported)
    assert ok_json(*command(lift_zarr, "--steps", 2))["checkpoint"] == "runs/lift/x/checkpoints/last"
    run = Path("runs/lift/x")
    for link in ("last", "best"):
        assert (run / "checkpoints" / link).read_text() == "step-00000002\n"
        for args in (("inspect",), ("export", "--out", f"{link}/policy", "--episodes", 0, "--data", lift_zarr)):
            ok(ddp(*args, run / "checkpoints" / link))
    assert "resuming runs/lift/x at step 2 of 2" in ok(ddp("train", "--task", "lift", "--resume")).stderr


def test_an_incomplete_torchrun_environment_is_ignored(lift_zarr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    ok(ddp(*command(lift_zarr, "--steps", 1)))


def test_a_broken_simulator_does_not_stop_training(lift_zarr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise SimulatorError("no display here.")

    monkeypatch.setattr("ddp_cli.evaluation.evaluation.evaluate", broken)
    result = ddp(*command(lift_zarr, "--steps", 2, "--eval-every", 1))
    ok(result)
    assert "step-00000001 was not evaluated: no display here." in result.stderr
    assert Path("runs/lift/x/checkpoints/best").resolve().name == "step-00000002"


def test_ctrl_c_in_the_last_evaluation_is_not_the_end(lift_zarr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        arguments[-1](None)  # as after an episode

    with monkeypatch.context() as patch:
        patch.setattr("ddp_cli.evaluation.evaluation.evaluate", interrupted)
        result = ddp(*command(lift_zarr, "--steps", 1, "--eval-every", 1, "--set", "eval_episodes=1"))
    assert result.exit_code == 130
    assert "step-00000001 was not evaluated: stopped" in result.stderr
    assert "resume with `ddp train" in result.stderr


def test_initial_weights_warn_of_actions_they_cannot_predict(lift_demos: Path) -> None:
    """Samples are clipped to the range of the store that the normalizer is of, where it scales by that range."""
    store = Path("absolute.zarr")
    ok(ddp("convert", lift_demos, "--actions", "absolute", "--out", store, "--workers", 1))
    ok(ddp(*command(store, "--steps", 1)))
    options = ("--steps", 1, "--name", "y", "--init-from", "runs/lift/x")
    assert "lie outside" not in ok(ddp(*command(store, *options))).stderr  # the same store
    policy, meta = load_policy(Path("runs/lift/x/checkpoints/last"))
    policy.normalizer.get_buffer("action_scale")[0] *= 2  # as of a store with half the range
    policy.normalizer.get_buffer("action_offset")[0] *= 2
    save_checkpoint(Path("narrow"), policy.config, policy.state_dict(), meta, None)
    options = ("--steps", 1, "--name", "z", "--init-from", "narrow")
    message = ok(ddp(*command(store, *options))).stderr
    assert "recorded actions lie outside the range that the initial policy can predict" in message
    result = ddp(*command(store, *options[:2], "--name", "u", *options[4:], "--set", "clip_sample=false"))
    assert "lie outside" not in ok(result).stderr


def test_weights_and_biases_receives_all_metrics(lift_zarr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict] = []
    logged: list[tuple[int, dict]] = []
    fake = types.SimpleNamespace(
        init=lambda **kwargs: started.append(kwargs) or fake,
        log=lambda numbers, step: logged.append((step, numbers)),
        finish=lambda exit_code: logged.append((exit_code, {})),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    ok(ddp(*command(lift_zarr, "--steps", 2, "--wandb")))
    ok(ddp("train", "--task", "lift", "--name", "x", "--resume", "--wandb"))
    assert started[0]["id"] == started[1]["id"]  # a resumed run is the same run there
    assert started[0]["config"]["policy"]["n_emb"] == 16
    losses = [(step, numbers["loss/loss"]) for step, numbers in logged if "loss/loss" in numbers]
    assert [step for step, _ in losses] == [1, 2]
    assert [loss for _, loss in losses] == metrics("loss")
    assert any("not for choosing checkpoints" in name for _, numbers in logged for name in numbers)
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = refused(ddp("train", "--task", "lift", "--name", "x", "--resume", "--wandb"))
    assert "pip install wandb" in line


def test_init_from_takes_the_weights_of_a_checkpoint(lift_zarr: Path, trained: Path) -> None:
    fresh = ok_json(*command(lift_zarr, "--steps", 1, "--set", "lr=1e-9"))
    first = metrics("loss")
    assert fresh["skipped_steps"] == 0
    Path("runs/lift/x").rename("runs/lift/fresh")
    ok(ddp(*command(lift_zarr, "--steps", 1, "--set", "lr=1e-9", "--init-from", trained / "lift/tiny")))
    assert metrics("loss") != first
    other = ["--init-from", trained / "lift/tiny", "--set", "n_emb=32", "--name", "y"]
    line = refused(ddp(*command(lift_zarr, "--steps", 1, *other)))
    assert "do not fit" in line
    assert "1 difference: n_emb is 16, expected 32." in line
    assert not Path("runs/lift/y").exists()


def test_seed_is_recorded_and_changes_the_weights(lift_zarr: Path) -> None:
    losses = []
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        ok(ddp(*command(lift_zarr, "--steps", 1, "--seed", seed, "--name", name)))
        assert json.loads(Path(f"runs/lift/{name}/config.json").read_text())["train"]["seed"] == seed
        losses.append(json.loads(Path(f"runs/lift/{name}/metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--name", "../x"], ["--name '../x'", "not a folder name"]),
        (["--name", ""], ["not a folder name"]),
        (["--name", "a\udcff"], [r"--name 'a\udcff' is not a folder name"]),  # bytes that are no UTF-8
        (["--resume", "--keep", "3"], ["--keep", "--resume"]),
        (["--resume", "--seed", "0"], ["--seed", "--resume"]),
        (["--seed", "1", "--set", "seed=20000000000", "--seed", "20000000000"], ["seed", "20000000000"]),
        (["--resume", "--init-from", "x"], ["--init-from", "--resume"]),
        (["--init-from", "nowhere", "--task", "lift"], ["'nowhere'"]),
        (["--resume", "--obs", "state"], ["--obs", "--resume"]),
        (["--set", "minutes=0"], ["length above 0", "steps, epochs or minutes"]),
        (["--set", "seed=20000000000"], ["seed", "20000000000"]),
        (["--set", "accumulate=129"], ["accumulate 129", "batch_size 128"]),
        (["--set", "checkpoint_every=3", "--eval-every", "4"], ["eval_every 4", "multiple", "3"]),
    ],
)
def test_bad_input_is_one_line(args: list[str], words: list[str], tmp_path: Path) -> None:
    line = refused(ddp("train", *args))
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []
