from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import tiny_config
from data.random_stores import forget_checksums
from training.run_helpers import (
    CPU,
    assert_equal_training_state,
    create,
    ignore_message,
    release,
    resume,
    saved_steps,
    train_new_run,
)

from ddp_cli.checkpoint_files import TRAIN_STATE, list_checkpoints
from ddp_cli.core.checkpoint import load_train_state
from ddp_cli.data.store import Store
from ddp_cli.errors import CheckpointError, DataError, DdpError
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.run import run_training
from ddp_cli.training.run_config import parse_run_config


def test_resume_is_bit_exact(lift_store: Store, tmp_path: Path) -> None:
    """Interrupted in the middle of the first epoch, in the step that ends it, and in the second epoch."""
    n_windows = len(load_training_data(tiny_config(), lift_store, CPU, ignore_message).train)
    assert 5 * 7 < n_windows < 5 * 8
    config = tiny_config(steps=20, batch_size=5, object_loss=1.0, checkpoint_every=100, p_drop_attn=0.2)
    uninterrupted = train_new_run(lift_store, tmp_path / "uninterrupted", config)
    train_new_run(lift_store, tmp_path / "interrupted", config, 4)
    for stop_at in (8, 11, 99):
        run = resume(tmp_path / "interrupted")
        run_training(run, Callbacks(should_stop=lambda: run.trainer.step_number == stop_at))  # noqa: B023
        release(run)
    assert run.trainer.step_number == 20
    assert_equal_training_state(uninterrupted, run)


def test_resume_skips_a_truncated_checkpoint(lift_store: Store, tmp_path: Path) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=4, checkpoint_every=2))
    newest = list_checkpoints(tmp_path / "run")[-1] / TRAIN_STATE
    newest.write_bytes(newest.read_bytes()[:1000])
    warnings: list[str] = []
    run = resume(tmp_path / "run", warnings.append)
    assert run.trainer.step_number == 2
    assert "step-00000004" in warnings[0]
    run_training(run, Callbacks())
    assert load_train_state(newest.parent)["step"] == 4  # written again
    assert saved_steps(tmp_path / "run") == [2, 4]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.parametrize("name", [TRAIN_STATE, "model.safetensors"])
def test_resume_skips_a_checkpoint_with_a_flipped_bit(lift_store: Store, tmp_path: Path, name: str) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=4, checkpoint_every=2))
    path = list_checkpoints(tmp_path / "run")[-1] / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    warnings: list[str] = []
    assert resume(tmp_path / "run", warnings.append).trainer.step_number == 2
    assert f"{name}' is damaged: its hash differs" in warnings[0]


def test_resume_leaves_a_run_unchanged_if_all_checkpoints_are_damaged(lift_store: Store, tmp_path: Path) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=4, checkpoint_every=2))
    for path in list_checkpoints(tmp_path / "run"):
        (path / TRAIN_STATE).unlink()

    def files() -> list[tuple[Path, int]]:
        return sorted((p, p.stat().st_size) for p in (tmp_path / "run").rglob("*") if p.is_file())

    before = files()
    with pytest.raises(CheckpointError, match="left unchanged.*--init-from .*step-00000004"):
        resume(tmp_path / "run", ignore_message)
    assert files() == before


@pytest.mark.parametrize(
    ("key", "value"), [("total_steps", "abc"), ("total_steps", -3), ("train", "x"), ("format", "x"), ("store", {})]
)
def test_resume_rejects_a_damaged_run_configuration(lift_store: Store, tmp_path: Path, key: str, value: object) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=1))
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DdpError, match="not the store" if key == "store" else "is damaged"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 2, "tr', "config.json' is not JSON: Unterminated[^.]*\\)\\. Restore"),
        ('{"format": 99}', "has format 99, this version of ddp reads"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        parse_run_config(tmp_path)


def test_resume_ignores_damaged_metrics(lift_store: Store, tmp_path: Path) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=4), stop_at=2)
    with (tmp_path / "run/metrics.jsonl").open("ab") as metrics:
        metrics.write(b'\xff\xfe\n{"step": "2"}\n[1]\n{"step": 2, "loss": "x"}\n{"step": 1, "lo')
    run_training(resume(tmp_path / "run"), Callbacks())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_resume_repeats_an_interrupted_evaluation(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(steps=6, eval_every=3), lift_store)
    calls: list[int] = []
    run_training(run, Callbacks(evaluate=lambda _: calls.append(1), should_stop=lambda: bool(calls)))
    assert saved_steps(tmp_path / "run") == [3]  # not one step further
    release(run)
    resumed, evaluated = resume(tmp_path / "run"), []
    run_training(resumed, Callbacks(evaluate=lambda path: evaluated.append(path.name) or 0.5))
    assert evaluated == ["step-00000003", "step-00000006"]


def test_resume_rejects_another_store(lift_store: Store, tmp_path: Path) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=1))
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    content["store"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not the store"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("key", ["robot0_eef_pos", "agentview_image"])
def test_resume_rejects_a_store_with_other_observations(lift_zarr: Path, tmp_path: Path, key: str) -> None:
    """The actions are the same, and so is the source that the store names."""
    store = forget_checksums(Path(shutil.copytree(lift_zarr, tmp_path / "s.zarr")))
    train_new_run(Store(store), tmp_path / "run", tiny_config(steps=1))
    release(resume(tmp_path / "run"))
    array = zarr.open_group(store, mode="r+")[f"data/{key}"]
    array[:] = array[:] // 2 if array.dtype == np.uint8 else array[:] + 0.5
    with pytest.raises(DataError, match="the content of the observations differs"):
        resume(tmp_path / "run")


def test_values_that_are_not_finite_are_refused_before_training(lift_zarr: Path, tmp_path: Path) -> None:
    store = forget_checksums(Path(shutil.copytree(lift_zarr, tmp_path / "s.zarr")))
    array = zarr.open_group(store, mode="r+")["data/robot0_eef_pos"]
    array[-1] = np.nan
    with pytest.raises(DataError, match="data/robot0_eef_pos is not finite in 1 steps, the first is in episode 1"):
        train_new_run(Store(store), tmp_path / "run", tiny_config(steps=1))
    assert not (tmp_path / "run").exists()


def test_a_training_state_of_another_version_is_rejected(lift_store: Store, tmp_path: Path) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=1))
    state = load_train_state(list_checkpoints(tmp_path / "run")[0])
    run = resume(tmp_path / "run")
    with pytest.raises(CheckpointError, match="does not fit this run"):
        run.trainer.load_state({k: v for k, v in state.items() if k != "ema"})
