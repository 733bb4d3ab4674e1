"""Missing and damaged files of exported folders are named by every command that reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ddp, ok, refused
from deploy.exporting import random_policy

from ddp_cli.core.checkpoint import load_policy, save_checkpoint
from ddp_cli.data.store import Store
from ddp_cli.deploy.example_observations import observations_from_store
from ddp_cli.deploy.export import ExportOptions, export_policy
from ddp_cli.inference.onnx_policy import obs_keys

COMMANDS = (("inspect",), ("serve",), ("rollout", "--policy"), ("eval", "-n", 1, "--policy"))


@pytest.fixture
def folder(policy_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(policy_folder, tmp_path / "policy"))


@pytest.mark.parametrize(
    "name",
    [
        "policy.json",
        "policy.onnx",
        "encoder.onnx",
        "denoiser.onnx",
        "runtime.py",
        "streaming.py",
        "device_check.py",
        "action_limits.py",
        "resize.py",
        "proof.json",
    ],
)
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    for command in COMMANDS:
        error = refused(ddp(*command, folder))
        assert name in error, command
        assert "missing" in error, command


@pytest.mark.parametrize("name", ["policy.onnx", "encoder.onnx", "runtime.py", "action_limits.py", "proof.json"])
def test_a_truncated_file_is_named(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    for command in COMMANDS:
        assert f"{name}' is damaged" in refused(ddp(*command, folder)), command


def test_a_damaged_description_is_named(folder: Path) -> None:
    content = (folder / "policy.json").read_text()
    for damaged in (content[: len(content) // 2], "[1]", ""):
        (folder / "policy.json").write_text(damaged)
        for command in COMMANDS:
            assert "policy.json' is damaged" in refused(ddp(*command, folder)), command
    spec = json.loads(content)
    for hashes in ([1], {"../policy.json": "0"}):
        (folder / "policy.json").write_text(json.dumps(spec | {"sha256": hashes}))
        assert "policy.json' is damaged: sha256" in refused(ddp("inspect", folder))


def test_a_graph_of_another_policy_is_named(folder: Path, lift_store: Store, tmp_path: Path) -> None:
    policy = random_policy(obs="state")
    obs = observations_from_store(obs_keys(policy), lift_store, 2, 2)
    export_policy(policy, {"render": "fast"}, ExportOptions(), tmp_path / "other", lambda: obs)
    shutil.copy(tmp_path / "other" / "policy.onnx", folder)
    for command in COMMANDS:
        assert "policy.onnx' is damaged, or belongs to another policy" in refused(ddp(*command, folder)), command


def test_the_readme_may_be_edited(folder: Path) -> None:
    (folder / "README.md").write_text("# My policy\n")
    ok(ddp("inspect", folder))


def test_other_formats_cannot_be_run(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    export_policy(random_policy(obs="state"), {"render": "fast"}, ExportOptions(format="safetensors"), folder, dict)
    ok(ddp("inspect", folder))
    for command in COMMANDS[1:]:
        assert "was exported as safetensors, which ddp does not run" in refused(ddp(*command, folder)), command
    (folder / "model.safetensors").write_bytes(b"")
    assert "model.safetensors' is damaged" in refused(ddp("inspect", folder))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors' is missing" in refused(ddp("inspect", folder))


def test_an_exported_checkpoint_has_the_chosen_sampler(tmp_path: Path) -> None:
    policy = random_policy(obs="state")
    save_checkpoint(tmp_path / "checkpoint", policy.config, policy.state_dict(), {"render": "fast"}, None)
    loaded, meta = load_policy(tmp_path / "checkpoint")
    loaded.set_sampler("dpm", 3)
    export_policy(loaded, meta, ExportOptions(format="ddp"), tmp_path / "exported", dict)
    exported, _ = load_policy(tmp_path / "exported")
    assert (exported.config.sampler, exported.config.num_inference_steps) == ("dpm", 3)
    obs = {key: torch.randn(1, 2, width) for key, width in policy.config.low_dim.items()}
    expected, actual = (p.predict_action(obs, torch.Generator().manual_seed(0))["action"] for p in (loaded, exported))
    assert torch.equal(actual, expected)
