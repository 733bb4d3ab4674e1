"""Exported folders run in episodes, evaluations and recordings as their checkpoint does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ddp, ok_json, random_observation, refused
from deploy.exporting import export_checkpoint

from ddp_cli.data.store import Store
from ddp_cli.deploy.exported_policy import load_exported_agent
from ddp_cli.deploy.runtime import Policy

pytestmark = pytest.mark.slow


def test_export_compares_episodes(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    """The same initial states with the same noise, run by `ddp export` itself."""
    comparison = export_checkpoint(checkpoint, lift_store, tmp_path / "policy", seeds=(3,)).proof["episodes"]
    assert [e["seed"] for e in comparison["episodes"]] == [3]
    assert comparison["episodes"][0]["checkpoint"] == comparison["episodes"][0]["exported"]
    assert comparison["differing"] == []
    assert "success in 1 episodes: checkpoint 0, exported policy 0" in (tmp_path / "policy/README.md").read_text()


def test_an_exported_agent_samples_the_noise_of_the_checkpoint(policy_folder: Path) -> None:
    policy, agent = Policy.load(policy_folder), load_exported_agent(policy_folder)
    history = [random_observation(policy, i) for i in range(2)]
    obs = {key: np.stack([step[key] for step in history]) for key in policy.obs}
    generator = torch.Generator().manual_seed(11)
    agent.reset(11)
    for _ in range(2):
        noise = torch.randn(1, 10, 7, generator=generator).numpy()
        np.testing.assert_array_equal(agent.act(history), policy.predict(obs, noise))


def test_missing_keys_of_policy_json_are_named(policy_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(policy_folder, tmp_path / "policy"))
    spec = json.loads((folder / "policy.json").read_text())
    for key in ("policy", "render", "action_normalizer"):
        (folder / "policy.json").write_text(json.dumps({k: v for k, v in spec.items() if k != key}))
        assert f"has no {key}" in refused(ddp("rollout", "--policy", folder))


def test_eval_and_rollout_accept_an_exported_folder(
    checkpoint: Path, lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ok_json("export", checkpoint, "--data", lift_zarr, "--episodes", "0")
    report = ok_json("eval", checkpoint, "--policy", "policy", "-n", "2", "--workers", "1")
    first, second = report["first"]["episodes"], report["second"]["episodes"]
    assert [(e["seed"], e["success"], e["steps"]) for e in first] == [
        (e["seed"], e["success"], e["steps"]) for e in second
    ]
    assert report["second"]["engine"] == "exported"
    assert "--sampler cannot be changed: 'policy' is an exported policy" in refused(
        ddp("eval", "policy", "--sampler", "ddpm")
    )
    assert "both given" in refused(ddp("rollout", checkpoint, "--policy", "policy"))
    rollout = ok_json("rollout", "--policy", "policy", "--seed", "100000")
    assert rollout["episodes"][0]["steps"] == first[0]["steps"]
