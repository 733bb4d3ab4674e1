"""The whole path once, on a few demos, as the README describes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import DOOR, SAMPLE_TASKS, TINY, Recorded, ok, ok_json, read_video
from conftest import ddp as run

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.store import Store
from ddp_cli.task_file import task_from_json

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[1] / "sample_data"
SETTINGS = [x for key, value in TINY.items() for x in ("--set", f"{key}={value}")]


def test_collect_convert_train_resume_eval_rollout_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ok_json("collect", "--task", "lift", "--episodes", 3, "--out", "demos.hdf5", "--workers", 2)["demos"] == 3
    converted = ok_json("convert", "demos.hdf5", "--workers", 2)
    assert converted["out"] == "data/lift.zarr"
    assert converted["frames"] == Store(Path("data/lift.zarr")).episode_ends[-1]
    ok(run("train", "--task", "lift", "--steps", 3, "--name", "a", *SETTINGS))
    assert "exists" in run("train", "--task", "lift", "--steps", 3, "--name", "a", *SETTINGS).stderr
    shutil.rmtree("runs/lift/a/checkpoints/step-00000003")
    assert ok_json("train", "--task", "lift", "--name", "a", "--resume")["steps"] == 3
    assert ok_json("eval", "--episodes", 2, "--workers", 2)["step"] == 3
    assert list(Path("runs/lift/a/eval").glob("*.json"))
    steps = ok_json("rollout", "--video", "out.mp4")["episodes"][0]["steps"]
    assert len(read_video(Path("out.mp4"))) == steps + 1
    assert ok_json("export", "--format", "safetensors", "--out", "policy")["files"] == [
        "README.md",
        "episode.jpg",
        "model.safetensors",
        "policy.json",
    ]


def test_a_task_described_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: Recorded) -> None:
    """The file is needed to convert; from then on the store and the checkpoints know the task."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(door.file, "door.json")
    converted = ok_json("convert", door.demos, "--task", "door.json", "--workers", 2)
    assert (converted["out"], converted["frames"]) == ("data/door.zarr", 20)
    ok(run("train", "--task", "door.json", "--steps", 2, "--name", "a", *SETTINGS))
    shutil.rmtree("runs/door/a/checkpoints/step-00000002")
    Path("door.json").unlink()
    assert ok_json("train", "--task", "door", "--name", "a", "--resume")["steps"] == 2
    ok(run("train", "--task", "door", "--steps", 2, "--name", "b", "--obs", "state", *SETTINGS))
    for run_folder in ("runs/door/a", "runs/door/b"):
        saved = json.loads(Path(run_folder, "checkpoints/last/config.json").read_text())
        assert saved["policy"]["task"] == saved["store"]["task"] == door.task.to_json()
        assert task_from_json(saved["policy"]["task"]) == task_from_json({**DOOR, "model_varies": True})
    report = ok_json("eval", "runs/door/a", "--episodes", 1, "--workers", 1)
    assert (report["task"], report["episodes"][0]["steps"]) == ("door", 12)
    ok(run("rollout", "--task", "door", "--video", "out.mp4"))
    assert read_video(Path("out.mp4")).shape == (13, 512, 512, 3)
    assert (
        max(ok_json("export", "runs/door/a", "--format", "onnx", "--episodes", "1")["proof"]["differences"].values())
        < 1e-4
    )


def test_train_without_data_converts_the_sample_demos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lift_demos: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sample_data").mkdir()
    shutil.copy(lift_demos, "sample_data/lift.hdf5")
    again = ["train", "--task", "lift", "--steps", 1, "--obs", "state", *SETTINGS]
    assert "converting sample_data/lift.hdf5 first" in ok(run(*again)).stderr
    assert Store(Path("data/lift-state.zarr")).task.name == "lift"  # nothing was drawn for it
    assert "converting" not in ok(run(*again, "--name", "b")).stderr
    ok(run("train", "--task", "lift", "--steps", 1, "--name", "c", *SETTINGS))
    assert Store(Path("data/lift.zarr")).is_image("agentview_image")


@pytest.mark.parametrize("task", SAMPLE_TASKS)
def test_sample_demos_are_whole_and_what_their_readme_says(task: str) -> None:
    with DemoFile(SAMPLES / f"{task}.hdf5") as file:
        assert file.task.name == task
        demos = list(file)
        assert len(demos) == len({d.seed for d in demos}) == file.attrs["demos"]
        assert f"| {task}.hdf5 | {len(demos)} | {file.attrs['total']:,} |" in (SAMPLES / "README.md").read_text()


def test_sample_demos_fit() -> None:
    assert sum(p.stat().st_size for p in SAMPLES.iterdir()) <= 15_000_000
