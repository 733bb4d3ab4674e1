"""Every command as a user runs it, and what it says when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import DOOR, ddp, misused, ok, ok_json, read_video, refused
from typer.main import get_command

from ddp_cli.cli import app
from ddp_cli.tasks import TASKS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and episodes that end early: an untrained policy does not succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "lift", dataclasses.replace(TASKS["lift"], horizon=30))


def test_help_names_every_command() -> None:
    text = ok(ddp("--help")).stdout
    groups = {
        "Data": ["collect", "convert", "inspect", "preview"], "Training": ["train", "plot"],
        "Evaluation": ["eval", "rollout"], "Deployment": ["export", "import", "serve"], "Installation": ["doctor"],
    }  # fmt: skip
    order = [word for group, commands in groups.items() for word in (f" {group} ", *(f" {c} " for c in commands))]
    places = [text.find(word, text.index(" Data ")) for word in order]
    assert -1 not in places
    assert places == sorted(places)
    assert ddp("--version").stdout.startswith("ddp ")


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "--preset", "papr"], ["'papr'", "'paper', 'laptop'", "ddp train --help"]),
        (["train", "--obs", "depth"], ["'--obs'", "'depth'", "'image', 'state'"]),
        (["convert", "none.hdf5", "--obs", "stat"], ["'stat'", "'image', 'state'", "ddp convert --help"]),
        (["eval", "--sampler", "ddmi"], ["'ddmi'", "'ddpm', 'ddim', 'dpm'"]),
        (["eval", "--episodes", "x"], ["'x'", "'--episodes'"]),
        (["train", "--plot"], ["--plot", "ddp train --help"]),
        (["frobnicate"], ["'frobnicate'", "ddp --help"]),
        (["--frobnicate"], ["--frobnicate", "ddp --help"]),
        (["convert"], ["SOURCE", "ddp convert --help"]),
        (["eval", "-n"], ["'-n'", "ddp eval --help"]),
    ],
)
def test_wrong_usage_is_one_line(args: list[str], words: list[str], tmp_path: Path) -> None:
    line = misused(ddp(*args))
    for word in words:
        assert word.lower() in line.lower()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", sorted(get_command(app).commands))  # type: ignore[attr-defined]
def test_help_has_panels_and_two_examples(command: str) -> None:
    text = ok(ddp(command, "--help")).stdout
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("$ ddp ")]
    assert len(examples) == 2
    assert all(f"ddp {command}" in line for line in examples)
    assert not {"Options", "None"} & {line.strip("─╭╮ ") for line in text.splitlines()} - {"Options"}


@pytest.mark.slow
def test_export_prints_the_largest_difference(trained: Path, lift_zarr: Path) -> None:
    text = ok(ddp("export", trained / "lift/tiny", "--out", "policy", "--data", lift_zarr, "--episodes", 0)).stdout
    assert "actions: largest difference from torch" in text
    assert Path("policy/denoiser.onnx").exists()
    assert "exists" in refused(ddp("export", trained / "lift/tiny", "--out", "policy"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["collect", "--task", "sqare"], ["'sqare'", "did you mean 'square'", "lift, can, square"]),
        (["train", "--task", "pickplace"], ["'pickplace'", "Valid tasks"]),
        (["train", "--task", "lift", "--data", "none.zarr"], ["no store 'none.zarr'", "ddp convert"]),
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


def test_a_described_task_has_no_scripted_policy_samples_or_run(tmp_path: Path) -> None:
    Path("door.json").write_text(json.dumps(DOOR))
    assert "no scripted policy for 'door', only for lift, can, square" in refused(ddp("collect", "--task", "door.json"))
    assert "no store 'data/door.zarr'" in refused(ddp("train", "--task", "door.json"))
    assert "no trained run of the task 'door'" in refused(ddp("eval", "--task", "door.json"))
    assert "no run of the task 'door'" in refused(ddp("train", "--task", "door.json", "--resume"))
    assert [p.name for p in tmp_path.iterdir()] == ["door.json"]


def test_a_run_is_not_resumed_as_another_task(trained: Path) -> None:
    Path("other.json").write_text(json.dumps(DOOR | {"name": "lift_side", "env_name": "Lift"}))
    shutil.copytree(trained / "lift" / "tiny", "runs/lift_side/tiny", symlinks=True)
    message = refused(ddp("train", "--task", "other.json", "--resume"))
    assert 'differs from \'other.json\': name "lift" instead of "lift_side"' in message


def test_a_wrong_render_profile_is_refused_before_any_work(lift_demos: Path, tmp_path: Path) -> None:
    assert "'full', 'fast'" in misused(ddp("convert", lift_demos, "--out", "s.zarr", "--render", "ultra"))
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
        assert "folder that ddp did not write" in refused(ddp(*command, "--out", "precious", "--overwrite"))
        assert "is a file" in refused(ddp(*command, "--out", "file", "--overwrite"))
    assert Path("precious/notes.txt").read_text() == Path("file").read_text() == "mine"


def test_export_and_import_never_replace_a_run(trained: Path, checkpoint: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "lift" / "tiny", tmp_path / "run", symlinks=True))
    files = sorted(run.rglob("*"))
    assert "did not write" in refused(ddp("export", checkpoint, "--format", "ddp", "--out", run, "--overwrite"))
    (tmp_path / "m.ckpt").write_bytes(b"PK")
    assert "did not write" in refused(ddp("import", tmp_path / "m.ckpt", "--out", run, "--overwrite"))
    assert sorted(run.rglob("*")) == files
    assert "no file 'missing'" in refused(ddp("import", "missing"))


def test_files_of_weights_are_explained(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "m.ckpt").write_bytes(b"PK")
    (tmp_path / "m.bin").write_bytes(b"")
    commands = [["eval"], ["rollout"], ["export"], ["train", "--task", "lift", "--steps", "1", "--init-from"]]
    for command in commands:
        assert f"`ddp import {tmp_path}/m.ckpt --out imported/`" in refused(ddp(*command, tmp_path / "m.ckpt"))
        text = refused(ddp(*command, checkpoint / "model.safetensors"))
        assert f"name its folder, '{checkpoint}'" in text
        assert "Name a checkpoint folder" in refused(ddp(*command, tmp_path / "m.bin"))
    assert f"`ddp eval {checkpoint}`" in refused(ddp("import", checkpoint / "model.safetensors"))
    assert "`ddp import` reads published .ckpt files" in refused(ddp("serve", tmp_path / "m.ckpt"))
    assert "`ddp import" in refused(ddp("inspect", tmp_path / "m.ckpt"))


def test_missing_weights_are_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    for command in ("eval", "rollout", "export"):
        assert "no model.safetensors" in refused(ddp(command, checkpoint))
