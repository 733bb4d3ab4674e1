"""The folder of a run: names of runs that start together, and stores that moved."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, ddp, ok, refused, tiny_config
from data.random_stores import forget_checksums
from training.run_helpers import (
    CPU,
    assert_equal_training_state,
    create,
    ignore_message,
    release,
    train_new_run,
)

from ddp_cli.data.store import Store
from ddp_cli.data.store_copy import copy_store
from ddp_cli.data.store_writer import CODEC
from ddp_cli.errors import ConfigError, DataError, DdpError
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.resume import resume_run
from ddp_cli.training.resume_command import resume_command
from ddp_cli.training.run import run_training
from ddp_cli.training.run_folder import create_run_folder


def test_runs_of_the_same_name_are_numbered(lift_store: Store, tmp_path: Path) -> None:
    runs = [create(tmp_path / "2026-01-01_00-00-00", tiny_config(), lift_store, numbered=True) for _ in range(3)]
    names = ["2026-01-01_00-00-00", "2026-01-01_00-00-00-2", "2026-01-01_00-00-00-3"]
    assert [run.folder.name for run in runs] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with pytest.raises(DdpError, match="'.*2026-01-01_00-00-00' already exists"):
        create(tmp_path / names[0], tiny_config(), lift_store)


CREATE = """
import sys
from pathlib import Path
from ddp_cli.training.run_folder import create_run_folder
folders = []  # and their locks
for i in range(10):
    folders.append(create_run_folder(Path(sys.argv[1]) / str(i), numbered=True))
    print(folders[-1].path, flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow  # three processes that load torch
def test_processes_that_start_together_get_different_names(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CREATE, str(tmp_path / "new/runs")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    names = [[process.stdout.readline().strip() for _ in range(10)] for process in processes]
    for process in processes:
        process.communicate("\n")
    expected = {str(tmp_path / "new/runs" / f"{i}{suffix}") for i in range(10) for suffix in ("", "-2", "-3")}
    assert {name for of_process in names for name in of_process} == expected


def test_a_run_that_another_process_is_starting_is_not_taken(tmp_path: Path) -> None:
    new = create_run_folder(tmp_path / "run")
    with pytest.raises(DdpError, match=r"another process is training '.*run'.*It is `.*` \(process \d+ on "):
        create_run_folder(tmp_path / "run")
    new.lock.release()  # as by SIGKILL
    create_run_folder(tmp_path / "run").remove()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_to_start_leaves_no_folders(lift_store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absolute"):
        create(tmp_path / "runs/lift/x", tiny_config(actions="absolute"), lift_store)
    assert list(tmp_path.iterdir()) == []


def resume(folder: Path, data: Path | None = None):
    return resume_run(folder, CPU, pytest.fail, ignore_message, data=data)


def test_a_run_resumes_with_a_store_that_moved_and_remembers_it(lift_zarr: Path, tmp_path: Path) -> None:
    before, after = Path(shutil.copytree(lift_zarr, tmp_path / "before.zarr")), tmp_path / "after.zarr"
    config = tiny_config(steps=4, checkpoint_every=2)
    train_new_run(Store(before), tmp_path / "run", config, stop_at=2)
    before.rename(after)
    with pytest.raises(DataError) as error:
        resume(tmp_path / "run")
    assert error.value.message == f"the store of '{tmp_path / 'run'}' is not at '{before}' any more."
    command = f"`ddp train --task {tmp_path.name} --name run --runs {tmp_path.parent} --resume --data STORE.zarr`"
    assert command in error.value.hint
    release(resume(tmp_path / "run", after))
    run = resume(tmp_path / "run")  # without --data
    assert run.trainer.step_number == 2
    run_training(run, Callbacks())
    uninterrupted = train_new_run(Store(after), tmp_path / "uninterrupted", config)
    assert_equal_training_state(uninterrupted, run)


def test_a_store_that_is_another_one_is_refused(lift_store: Store, tmp_path: Path) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=1))
    config = (tmp_path / "run/config.json").read_text()
    copy_store(lift_store, tmp_path / "one.zarr", ":1", None, 3, lambda *_: None)
    with pytest.raises(DataError) as error:
        resume(tmp_path / "run", tmp_path / "one.zarr")
    one, both = lift_store.episode_ends.tolist()
    assert "the number of demonstrations differs (1 instead of 2)" in error.value.message
    assert f"the number of steps differs ({one} instead of {both})" in error.value.message
    assert (tmp_path / "run/config.json").read_text() == config

    copy_store(lift_store, tmp_path / "same.zarr", None, None, 2, lambda *_: None)
    release(resume(tmp_path / "run", tmp_path / "same.zarr"))  # another zarr format, the same content
    chunk = tmp_path / "changed.zarr/data/action/0.0"
    forget_checksums(Path(shutil.copytree(tmp_path / "same.zarr", tmp_path / "changed.zarr")))
    actions = np.frombuffer(CODEC.decode(chunk.read_bytes()), "f4").copy()
    actions[5] += 1
    chunk.write_bytes(CODEC.encode(actions))
    with pytest.raises(DataError, match="was started with: the content of the actions differs"):
        resume(tmp_path / "run", tmp_path / "changed.zarr")


def test_runs_of_older_versions_resume_without_the_list_of_copied_observations(
    lift_store: Store, tmp_path: Path
) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=1))
    content = json.loads((tmp_path / "run/config.json").read_text())
    assert content["store"].pop("observations") == []
    (tmp_path / "run/config.json").write_text(json.dumps(content))
    release(resume(tmp_path / "run"))
    content["store"]["observations"] = ["agentview_image"]
    (tmp_path / "run/config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="the copied observations differs"):
        resume(tmp_path / "run")


def test_seconds_go_on_after_an_interruption(lift_store: Store, tmp_path: Path) -> None:
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=4, checkpoint_every=2), stop_at=2)
    path = tmp_path / "run/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert 0 < rows[0]["seconds"] < 1000
    path.write_text("".join(json.dumps(row | {"seconds": 5000 + row["step"]}) + "\n" for row in [*rows, {"step": 3}]))
    run_training(resume(tmp_path / "run"), Callbacks())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[:2] == [5001, 5002]
    assert 5002 <= seconds[2] < 5002 + 1000  # not after the removed row of step 3


def test_train_resumes_a_run_whose_store_moved(
    lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = Path(shutil.copytree(lift_zarr, tmp_path / "before.zarr"))
    train_new_run(Store(before), tmp_path / "runs/lift/x", tiny_config(steps=2, checkpoint_every=1), stop_at=1)
    before.rename("after.zarr")
    command = ["train", "--task", "lift", "--name", "x", "--resume"]
    line = refused(ddp(*command))
    assert "not at" in line
    assert "`ddp train --task lift --name x --resume --data STORE.zarr`" in line
    result = ok(ddp(*command, "--data", "after.zarr"))
    assert "resuming runs/lift/x at step 1 of 2" in result.stderr
    assert json.loads(Path("runs/lift/x/config.json").read_text())["data"] == str(tmp_path / "after.zarr")


def test_the_command_that_resumes_a_run_is_complete(
    lift_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resume_command(Path("/x")) == "ddp train --resume"
    assert resume_command(Path("runs/lift/x")) == "ddp train --task lift --name x --resume"
    folder = Path("my runs/not built in/it's")
    train_new_run(lift_store, folder, tiny_config(steps=3, checkpoint_every=1), stop_at=1)
    command = resume_command(folder, "--json")
    assert command == """ddp train --task 'not built in' --name 'it'"'"'s' --runs 'my runs' --resume --json"""
    result = ok(ddp(*shlex.split(command)[1:]))
    assert json.loads(result.stdout)["steps"] == 3
    monkeypatch.chdir(folder.parent)
    assert shlex.split(resume_command(Path("it's")))[2:-1] == [
        "--task", "not built in", "--name", "it's", "--runs", str(tmp_path / "my runs"),
    ]  # fmt: skip


def test_commands_in_messages_can_be_pasted(
    lift_store: Store, lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    command = ("train", "--task", "lift", "--data", lift_zarr, "--steps", 1, "--preset", "laptop", *settings)
    result = ok(ddp(*command, "--runs", "my runs", "--name", "new one"))
    assert "`ddp eval 'my runs/lift/new one'`" in result.stderr
    train_new_run(lift_store, tmp_path / "my runs/lift/old one", tiny_config(steps=2, checkpoint_every=1), stop_at=1)
    content = json.loads(Path("my runs/lift/old one/config.json").read_text())
    Path("my runs/lift/old one/config.json").write_text(json.dumps(content | {"data": "moved.zarr"}))
    line = refused(ddp("train", "--task", "lift", "--runs", "my runs", "--name", "old one", "--resume"))
    assert "`ddp train --task lift --name 'old one' --runs 'my runs' --resume --data STORE.zarr`" in line


def test_a_run_keeps_the_folder_of_decoded_images_but_its_checkpoints_do_not(lift_store: Store, tmp_path: Path) -> None:
    """Checkpoints are passed on; they hold no paths of a machine."""
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=1, cache_dir=str(tmp_path / "cache")))
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["cache_dir"] == str(tmp_path / "cache")
    assert str(tmp_path / "cache") not in (tmp_path / "run/checkpoints/last/config.json").read_text()
