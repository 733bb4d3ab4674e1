from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import DOOR

from ddp_cli.config import PolicyConfig
from ddp_cli.core import checkpoint as ck
from ddp_cli.errors import CheckpointError, ConfigError


def test_round_trip(checkpoint: Path) -> None:
    policy, meta = ck.load_policy(checkpoint)
    assert not policy.training
    assert meta["step"] == 4
    assert meta["render"] == "fast"
    copy = checkpoint.with_name("copy")
    ck.save_checkpoint(copy, policy.config, policy.state_dict(), {"step": 4}, None)
    again, _ = ck.load_policy(copy)
    assert again.config == policy.config
    for name, value in policy.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not (copy / ck.TRAIN_STATE).exists()
    with pytest.raises(CheckpointError, match=r"train_state\.pt"):
        ck.load_train_state(copy)


@pytest.mark.parametrize("name", [ck.CONFIG, ck.MODEL])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        ck.load_policy(checkpoint)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_damaged_weights_are_refused(checkpoint: Path, size: int) -> None:
    path = checkpoint / ck.MODEL
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        ck.load_policy(checkpoint)


def test_weights_of_another_configuration_are_refused(checkpoint: Path) -> None:
    path = checkpoint / ck.CONFIG
    config = json.loads(path.read_text())
    config["policy"]["n_emb"] = 32
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="damaged"):
        ck.load_policy(checkpoint)


def test_another_format_version_is_refused(checkpoint: Path) -> None:
    path = checkpoint / ck.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        ck.load_policy(checkpoint)


def test_nothing_is_left_of_a_checkpoint_that_could_not_be_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, _ = ck.load_policy(checkpoint)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    target = tmp_path / "checkpoints" / "step-1"
    with pytest.raises(OSError, match="No space"):
        ck.save_checkpoint(target, policy.config, policy.state_dict(), {}, {"step": 1})
    assert list(target.parent.iterdir()) == []


def test_train_state_never_executes_what_it_carries(checkpoint: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"step": Bomb()}, checkpoint / ck.TRAIN_STATE)
    meta = json.loads((checkpoint / ck.CONFIG).read_text())
    meta["sha256"][ck.TRAIN_STATE] = ck.file_hash(checkpoint / ck.TRAIN_STATE)
    (checkpoint / ck.CONFIG).write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="damaged"):
        ck.load_train_state(checkpoint)
    assert not (tmp_path / "exploded").exists()


def test_resolve_takes_a_checkpoint_a_run_or_the_newest(trained: Path, checkpoint: Path) -> None:
    run = trained / "lift" / "tiny"
    assert ck.resolve_checkpoint(checkpoint, trained) == checkpoint
    assert ck.resolve_checkpoint(run, trained).name == "step-00000004"
    assert ck.resolve_checkpoint(None, trained, "lift") == ck.resolve_checkpoint(run, trained)
    with pytest.raises(CheckpointError, match="ddp train --task can"):
        ck.resolve_checkpoint(None, trained, "can")


def test_a_built_in_task_is_kept_as_its_name(checkpoint: Path, trained: Path) -> None:
    content = json.loads((checkpoint / ck.CONFIG).read_text())
    assert content["policy"]["task"] == content["store"]["task"] == "lift"
    run = json.loads((trained / "lift" / "tiny" / "config.json").read_text())
    assert run["train"]["policy"]["task"] == run["store"]["task"] == "lift"


def test_resolve_takes_the_file_of_a_task_unless_the_run_is_of_another(trained: Path, tmp_path: Path) -> None:
    file, runs = tmp_path / "door.json", tmp_path / "runs"
    file.write_text(json.dumps(DOOR))
    with pytest.raises(CheckpointError, match=r"no trained run of the task 'door'.*--task .*door\.json"):
        ck.resolve_checkpoint(None, trained, str(file))
    folder = runs / "door" / "a" / "checkpoints" / "step-1"
    ck.save_checkpoint(folder, PolicyConfig(task=DOOR), {}, {}, None)
    for link in ("last", "best"):
        ck.update_link(folder.with_name(link), folder)
    for named in (str(file), "door"):
        assert ck.resolve_checkpoint(None, runs, named) == folder
    file.write_text(json.dumps(DOOR | {"horizon": 99}))
    for path in (None, folder, folder.parents[1]):
        with pytest.raises(ConfigError, match=r"step-1' is of another task than .*horizon 12 instead of 99"):
            ck.resolve_checkpoint(path, runs, str(file))
    assert ck.resolve_checkpoint(None, runs, "door") == folder
