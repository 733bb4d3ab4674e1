"""Checkpoints, runs and exported folders are resolved, described and imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import DOOR, tiny_config
from core.published_checkpoint import published_cfg, save_ckpt
from core.published_recipe import inputs, state_dict

from ddp_cli.core.checkpoint import load_policy, save_checkpoint
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.published import import_published
from ddp_cli.data.store import Store
from ddp_cli.deploy.checkpoint_import import import_checkpoint
from ddp_cli.deploy.export import ExportOptions, export_policy
from ddp_cli.deploy.policy_inspection import inspect_policy, is_policy
from ddp_cli.deploy.policy_source import open_policy_source, resolve_policy
from ddp_cli.errors import CheckpointError, ConfigError, DdpError
from ddp_cli.policy_config import PolicyConfig

LOW_DIM_INPUTS = {"robot0_eef_pos": [3], "robot0_eef_quat": [4], "robot0_gripper_qpos": [2]}


def test_a_run_is_its_best_checkpoint(trained: Path, lift_store: Store) -> None:
    run = trained / "lift/tiny"
    best = (run / "checkpoints/best").resolve()
    description = inspect_policy(run)
    assert description == inspect_policy(best)
    assert resolve_policy(run, Path(), None) == best
    assert (description["path"], description["run"]) == (str(best), str(run))
    store = description["store"]
    assert (store["file"], store["demos"], store["steps"]) == (str(lift_store.path), 2, lift_store.episode_ends[-1])


def test_a_checkpoint_is_described(checkpoint: Path) -> None:
    description = inspect_policy(checkpoint)
    assert json.loads(json.dumps(description)) == description
    assert (description["kind"], description["run"], description["format"]) == ("checkpoint", None, None)
    assert (description["task"], description["obs"]) == ("lift", "image")
    assert description["action"] == {"convention": "delta", "frame": "base", "rotation": "axis-angle", "dim": 7}
    images = {"agentview_image": [84, 84, 3], "robot0_eye_in_hand_image": [84, 84, 3]}
    assert description["inputs"] == images | LOW_DIM_INPUTS
    assert [description[key] for key in ("n_obs_steps", "horizon", "n_action_steps")] == [2, 10, 8]
    assert [description[key] for key in ("sampler", "inference_steps", "step")] == ["ddim", 2, 4]
    policy, _ = load_policy(checkpoint)
    assert description["parameters"] == sum(p.numel() for p in policy.parameters())
    assert description["resumable"]
    assert description["store"]["file"] is None  # the folder was copied out of its run
    assert {"robosuite", "mujoco"} <= description["versions"].keys()
    assert description["files"] == {p.name: p.stat().st_size for p in checkpoint.iterdir()}


def test_an_exported_folder_is_described(policy_folder: Path, trained: Path) -> None:
    description, checkpoint = inspect_policy(policy_folder), inspect_policy(trained / "lift/tiny")
    assert json.loads(json.dumps(description)) == description
    assert [description[key] for key in ("kind", "format", "precision")] == ["exported policy", "onnx", "fp32"]
    different = {"kind", "path", "run", "format", "precision", "resumable", "store", "versions", "files"}
    assert {k: v for k, v in description.items() if k not in different} == {
        k: v for k, v in checkpoint.items() if k not in different
    }
    assert description["store"] == {**checkpoint["store"], "file": None}
    assert {"ddp", "torch", "onnx", "robosuite"} <= description["versions"].keys()
    assert "policy.onnx" in description["files"]


@pytest.mark.parametrize("settings", [{"encoder": "resnet18"}, {"obs": "state", "fusion": 16}], ids=str)
def test_parameters_are_counted_without_the_normalizer(settings: dict, tmp_path: Path) -> None:
    policy = DiffusionPolicy(tiny_config(**settings).policy)
    expected = sum(p.numel() for p in policy.parameters())
    save_checkpoint(tmp_path / "checkpoint", policy.config, policy.state_dict(), {"render": "fast"}, None)
    export_policy(policy, {"render": "fast"}, ExportOptions(format="safetensors"), tmp_path / "exported", dict)
    for folder in (tmp_path / "checkpoint", tmp_path / "exported"):
        description = inspect_policy(folder)
        assert description["parameters"] == expected
        assert (description["store"], description["step"], description["resumable"]) == (None, None, False)


def test_damaged_policies_are_named(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="model.safetensors' is damaged"):
        inspect_policy(checkpoint)
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        inspect_policy(tmp_path / "nothing")
    exported = tmp_path / "exported"
    exported.mkdir()
    for content, message in (("[]", "is damaged"), ("{", "is damaged"), ('{"format": 1}', "has format 1")):
        (exported / "policy.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            inspect_policy(exported)


def test_policies_are_recognised(trained: Path, checkpoint: Path, policy_folder: Path, lift_zarr: Path) -> None:
    assert all(is_policy(path) for path in (trained / "lift/tiny", checkpoint, policy_folder))
    assert not any(is_policy(path) for path in (trained, lift_zarr, checkpoint / "config.json", Path("nothing")))


def test_options_that_an_exported_policy_fixes_are_refused(policy_folder: Path) -> None:
    for option, arguments in {
        "--sampler": ("cpu", "ddpm", None, "auto"),
        "--inference-steps": ("cpu", None, 3, "auto"),
        "--engine": ("cpu", None, None, "torch"),
        "--device": ("cuda", None, None, "auto"),
    }.items():
        with pytest.raises(DdpError, match=f"{option} cannot be changed"):
            open_policy_source(policy_folder, *arguments)
    assert open_policy_source(policy_folder, "auto", None, None, "auto").engine == "exported"


def test_an_exported_policy_of_another_task_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    assert resolve_policy(policy_folder, Path(), "lift") == policy_folder
    (tmp_path / "door.json").write_text(json.dumps(DOOR))
    with pytest.raises(ConfigError, match="is a policy of the task 'lift', not of 'can'"):
        resolve_policy(policy_folder, Path(), "can")
    with pytest.raises(ConfigError, match=r"the task of '.*' differs from '.*door.json'"):
        resolve_policy(policy_folder, Path(), str(tmp_path / "door.json"))


def test_a_published_checkpoint_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PolicyConfig(task="square", n_layer=2, n_emb=32, num_inference_steps=5)
    weights, out = state_dict(config), tmp_path / "imported"
    path = save_ckpt(tmp_path / "model.ckpt", published_cfg(), weights, monkeypatch)
    imported = import_checkpoint(path, out)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    policy, meta = load_policy(out)
    assert policy.config == imported.config
    assert meta["published"] == "model.ckpt"
    obs, _ = inputs(2)
    expected = import_published(weights, policy.config).predict_action(obs, torch.Generator().manual_seed(1))
    actions = policy.predict_action(obs, torch.Generator().manual_seed(1))
    assert torch.equal(actions["action_pred"], expected["action_pred"])
    description = inspect_policy(out)
    assert (description["task"], description["step"], description["store"]) == ("square", None, None)


def test_an_import_never_replaces_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_ckpt(tmp_path / "model.ckpt", published_cfg(), {}, monkeypatch)
    for out in (tmp_path, path):
        with pytest.raises(DdpError, match="Choose another output"):
            import_checkpoint(path, out)
    with pytest.raises(CheckpointError, match="no file"):
        import_checkpoint(tmp_path / "missing.ckpt", tmp_path / "imported")
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]
