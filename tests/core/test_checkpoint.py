from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import DOOR, ok_json

from ddp_cli.core import checkpoint as ck
from ddp_cli.core import checkpoint_lookup
from ddp_cli.deploy.policy_inspection import inspect_policy, is_policy
from ddp_cli.deploy.policy_source import open_policy_source
from ddp_cli.disk import replace_link
from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.policy_config import PolicyConfig


def test_a_saved_policy_is_loaded_unchanged(checkpoint: Path) -> None:
    policy, meta = ck.load_policy(checkpoint)
    assert not policy.training
    assert meta["step"] == 4
    assert meta["render"] == "fast"
    copy = checkpoint.with_name("copy")
    ck.save_checkpoint(copy, policy.config, policy.state_dict(), {"step": 4}, None)
    loaded, _ = ck.load_policy(copy)
    assert loaded.config == policy.config
    for name, value in policy.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert not (copy / ck.TRAIN_STATE).exists()
    with pytest.raises(CheckpointError, match=r"train_state\.pt"):
        ck.load_train_state(copy)


@pytest.mark.parametrize("name", [ck.CONFIG, ck.MODEL])
def test_a_missing_file_is_reported_by_name(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        ck.load_policy(checkpoint)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_truncated_weights_are_rejected(checkpoint: Path, size: int) -> None:
    path = checkpoint / ck.MODEL
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        ck.load_policy(checkpoint)


def test_weights_of_another_checkpoint_are_rejected(checkpoint: Path) -> None:
    """They have the right shapes; only the hash in config.json tells."""
    policy, _ = ck.load_policy(checkpoint)
    with torch.no_grad():
        next(policy.parameters()).add_(1e-3)
    other = checkpoint.with_name("other")
    ck.save_checkpoint(other, policy.config, policy.state_dict(), {}, None)
    shutil.copy(other / ck.MODEL, checkpoint)
    for load in (ck.load_policy, ck.load_weights):
        with pytest.raises(CheckpointError, match=r"model\.safetensors' is damaged, or belongs to another checkpoint"):
            load(checkpoint)
    config = json.loads((checkpoint / ck.CONFIG).read_text())
    del config["sha256"]  # not in every checkpoint
    (checkpoint / ck.CONFIG).write_text(json.dumps(config))
    loaded, _ = ck.load_policy(checkpoint)
    assert torch.equal(next(loaded.parameters()), next(policy.parameters()))


def test_weights_that_do_not_fit_the_configuration_are_rejected(checkpoint: Path) -> None:
    path = checkpoint / ck.CONFIG
    config = json.loads(path.read_text())
    config["policy"]["n_emb"] = 32
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="damaged"):
        ck.load_policy(checkpoint)


def test_another_format_version_is_rejected(checkpoint: Path) -> None:
    path = checkpoint / ck.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        ck.load_policy(checkpoint)


def test_a_failed_save_leaves_no_files(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = ck.load_policy(checkpoint)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", disk_full)
    target = tmp_path / "checkpoints" / "step-1"
    with pytest.raises(OSError, match="No space"):
        ck.save_checkpoint(target, policy.config, policy.state_dict(), {}, {"step": 1})
    assert not target.parent.exists()  # it was created for the checkpoint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": []}, "versions is of type list"),
        ({"store": {"versions": "x"}}, r"store\.versions is of type str"),
        ({"store": 3}, "store is of type int"),
        ({"render": {}}, "render is of type dict"),
        ({"policy": "x"}, "damaged"),
    ],
)
def test_values_of_another_type_are_named(checkpoint: Path, changes: dict, message: str) -> None:
    meta = json.loads((checkpoint / ck.CONFIG).read_text())
    (checkpoint / ck.CONFIG).write_text(json.dumps(meta | changes))
    with pytest.raises(CheckpointError, match=message):
        ck.load_meta(checkpoint)
    (checkpoint / ck.CONFIG).write_text(json.dumps(meta | {"render": None, "store": None, "versions": None}))
    assert inspect_policy(checkpoint)["versions"] == {}
    with pytest.raises(CheckpointError, match="does not say how its images were rendered"):
        open_policy_source(checkpoint, "cpu", None, None, "auto")


def test_loading_a_training_state_executes_no_code(checkpoint: Path, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"step": Malicious()}, checkpoint / ck.TRAIN_STATE)
    meta = json.loads((checkpoint / ck.CONFIG).read_text())
    meta["sha256"][ck.TRAIN_STATE] = ck.file_hash(checkpoint / ck.TRAIN_STATE)
    (checkpoint / ck.CONFIG).write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="damaged"):
        ck.load_train_state(checkpoint)
    assert not (tmp_path / "executed").exists()


def test_resolve_checkpoint_accepts_a_checkpoint_a_run_or_nothing(trained: Path, checkpoint: Path) -> None:
    run = trained / "lift" / "tiny"
    assert checkpoint_lookup.resolve_checkpoint(checkpoint, trained) == checkpoint
    assert checkpoint_lookup.resolve_checkpoint(run, trained).name == "step-00000004"
    best = checkpoint_lookup.resolve_checkpoint(run, trained)
    assert checkpoint_lookup.resolve_checkpoint(None, trained, "lift") == best
    with pytest.raises(CheckpointError, match="ddp train --task can"):
        checkpoint_lookup.resolve_checkpoint(None, trained, "can")


@pytest.mark.parametrize("link", ["last", "best"])
def test_a_link_is_the_checkpoint_that_it_names_now(link: str, trained: Path) -> None:
    run = trained / "lift" / "tiny"
    found = checkpoint_lookup.resolve_checkpoint(run / "checkpoints" / link, trained)
    assert found == run / "checkpoints" / (run / "checkpoints" / link).resolve().name


def test_links_may_be_files_that_name_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "lift" / "tiny", tmp_path / "lift" / "run", symlinks=True))
    links = {name: run / "checkpoints" / name for name in ("last", "best")}
    for name, step in (("last", 4), ("best", 2)):
        links[name].unlink()
        links[name].write_text(f"step-0000000{step}\n")
    best = run / "checkpoints/step-00000002"
    for path in (run, links["best"], None):
        assert checkpoint_lookup.resolve_checkpoint(path, tmp_path) == best
    assert checkpoint_lookup.resolve_checkpoint(links["last"], tmp_path).name == "step-00000004"
    assert is_policy(run)
    assert inspect_policy(links["best"]) == inspect_policy(best)
    for text in ("", "step-00000009"):
        links["best"].write_text(text)
        assert checkpoint_lookup.resolve_checkpoint(run, tmp_path).name == "step-00000004"


def test_resolve_checkpoint_rejects_a_task_of_another_name(trained: Path, tmp_path: Path) -> None:
    run = trained / "lift" / "tiny"
    assert checkpoint_lookup.resolve_checkpoint(run, trained, "lift").parents[1] == run
    with pytest.raises(ConfigError, match=r"step-00000004' is a policy of the task 'lift', not of 'can'.*--task"):
        checkpoint_lookup.resolve_checkpoint(run, trained, "can")
    shutil.copytree(trained / "lift", tmp_path / "old_lift", symlinks=True)  # without a path, a folder is named
    assert checkpoint_lookup.resolve_checkpoint(None, tmp_path, "old_lift").parents[1] == tmp_path / "old_lift/tiny"


def test_a_run_whose_best_checkpoint_was_removed_has_its_newest(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "lift/tiny", tmp_path / "runs/lift/tiny", symlinks=True))
    best = checkpoint_lookup.resolve_checkpoint(run, tmp_path)
    for step in range(1, 4):
        shutil.rmtree(best.with_name(f"step-0000000{step}"))
    older = Path(shutil.copytree(best, best.with_name("step-00000003")))
    shutil.copytree(best, best.with_name("step-00000000"))  # initial weights
    shutil.rmtree(best)
    for path in (run, None):
        assert checkpoint_lookup.resolve_checkpoint(path, tmp_path / "runs") == older
    assert ok_json("inspect", run)["step"] == 4
    shutil.rmtree(older)
    with pytest.raises(CheckpointError, match="no trained run"):
        checkpoint_lookup.resolve_checkpoint(None, tmp_path / "runs")


def write_run(folder: Path, **times: float) -> Path:
    """A run folder whose files have the given modification times [s]."""
    names = {"config": "config.json", "metrics": "metrics.jsonl", "checkpoint": "checkpoints/step-00000001"}
    for kind, time in times.items():
        path = folder / names[kind]
        if kind == "checkpoint":
            path.mkdir(parents=True)
            replace_link(folder / "checkpoints/last", path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        os.utime(path, (time, time))
    return folder


def test_the_newest_run_is_the_one_started_resumed_or_checkpointed_last(tmp_path: Path) -> None:
    started = write_run(tmp_path / "lift/started", config=10, metrics=11, checkpoint=12)
    assert checkpoint_lookup.newest_run(tmp_path) == started
    resumed = write_run(tmp_path / "can/resumed", config=1, metrics=13)
    assert checkpoint_lookup.newest_run(tmp_path) == resumed
    checkpointed = write_run(tmp_path / "lift/checkpointed", config=2, metrics=3, checkpoint=14)
    assert checkpoint_lookup.newest_run(tmp_path) == checkpointed
    new = write_run(tmp_path / "lift/new", config=15)
    assert checkpoint_lookup.newest_run(tmp_path) == checkpoint_lookup.newest_run(tmp_path, "lift") == new
    assert checkpoint_lookup.newest_run(tmp_path, "can") == resumed


def test_the_newest_run_can_be_required_to_have_a_checkpoint(tmp_path: Path) -> None:
    older = write_run(tmp_path / "lift/older", config=1, metrics=2, checkpoint=3)
    newer = write_run(tmp_path / "lift/newer", checkpoint=4)  # a copy without its configuration
    write_run(tmp_path / "lift/without", config=5, metrics=6)
    assert checkpoint_lookup.newest_run(tmp_path, "lift", require_checkpoint=True) == newer
    os.utime(older / "metrics.jsonl", (7, 7))  # resumed since
    assert checkpoint_lookup.newest_run(tmp_path, require_checkpoint=True) == older
    write_run(tmp_path / "can/without", config=9)
    with pytest.raises(CheckpointError, match="no trained run of the task 'can'.*ddp train --task can"):
        checkpoint_lookup.newest_run(tmp_path, "can", require_checkpoint=True)
    with pytest.raises(CheckpointError, match="no run of the task 'square'.*ddp train --task square"):
        checkpoint_lookup.newest_run(tmp_path, "square")
    with pytest.raises(CheckpointError, match="no trained run in .*nowhere"):
        checkpoint_lookup.newest_run(tmp_path / "nowhere", require_checkpoint=True)


def test_a_built_in_task_is_stored_as_its_name(checkpoint: Path, trained: Path) -> None:
    content = json.loads((checkpoint / ck.CONFIG).read_text())
    assert content["policy"]["task"] == content["store"]["task"] == "lift"
    run = json.loads((trained / "lift" / "tiny" / "config.json").read_text())
    assert run["train"]["policy"]["task"] == run["store"]["task"] == "lift"


def test_resolve_checkpoint_rejects_another_task_of_the_same_name(trained: Path, tmp_path: Path) -> None:
    file, runs = tmp_path / "door.json", tmp_path / "runs"
    file.write_text(json.dumps(DOOR))
    with pytest.raises(CheckpointError, match=r"no trained run of the task 'door'.*--task .*door\.json"):
        checkpoint_lookup.resolve_checkpoint(None, trained, str(file))
    folder = runs / "door" / "a" / "checkpoints" / "step-1"
    ck.save_checkpoint(folder, PolicyConfig(task=DOOR), {}, {}, None)
    for link in ("last", "best"):
        replace_link(folder.with_name(link), folder)
    for task in (str(file), "door"):
        assert checkpoint_lookup.resolve_checkpoint(None, runs, task) == folder
    file.write_text(json.dumps(DOOR | {"horizon": 99}))
    for path in (None, folder, folder.parents[1]):
        with pytest.raises(ConfigError, match=r"the task of '.*step-1' differs from .*horizon 12 instead of 99"):
            checkpoint_lookup.resolve_checkpoint(path, runs, str(file))
    assert checkpoint_lookup.resolve_checkpoint(None, runs, "door") == folder
