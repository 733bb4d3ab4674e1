"""The Python interface: `import ddp_cli`."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import random_observation

import ddp_cli
from ddp_cli.deploy.runtime import Policy
from ddp_cli.errors import CheckpointError, ConfigError, DataError
from ddp_cli.tasks import TASKS


def test_import_is_light() -> None:
    code = "import sys, ddp_cli; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)), dir(ddp_cli))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.startswith("[]")
    assert "'evaluate', 'load_policy', 'open_store'" in process.stdout
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ddp_cli.nonsense  # noqa: B018


def test_open_store(lift_zarr: Path) -> None:
    store = ddp_cli.open_store(str(lift_zarr))
    assert store.read("action").shape == (store.episode_ends[-1], 7)
    with pytest.raises(DataError, match="no store"):
        ddp_cli.open_store("nowhere.zarr")


def test_a_checkpoint_and_its_export_act_alike(trained: Path, policy_folder: Path) -> None:
    frames = [random_observation(Policy.load(policy_folder), seed) for seed in range(2)]
    obs = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    actions = []
    for path in (trained / "lift" / "tiny", policy_folder):
        policy = ddp_cli.load_policy(path)
        assert {key: (2, *shape) for key, shape in policy.obs_shapes.items()} == {k: v.shape for k, v in obs.items()}
        policy.reset(7)
        first, second = policy.act(obs), policy.act(obs)
        assert first.shape == (8, 7)
        assert not np.array_equal(first, second)
        policy.reset(7)
        np.testing.assert_array_equal(policy.act(obs), first)
        actions.append(first)
    np.testing.assert_array_equal(np.clip(actions[0], -1, 1), actions[1])
    as_float = {key: value / 255 if key.endswith("_image") else value for key, value in obs.items()}
    with pytest.raises(ConfigError, match="'agentview_image' is float64, expected uint8"):  # a cast would make it black
        policy.act(as_float)
    with pytest.raises(ConfigError, match="'robot0_eef_pos' is not finite numbers"):
        policy.act(obs | {"robot0_eef_pos": obs["robot0_eef_pos"] * np.nan})
    with pytest.raises(ConfigError, match="'agentview_image' is missing"):
        policy.act({})
    with pytest.raises(ConfigError, match=r"'agentview_image' has shape \(2, 10, 10, 3\), expected \(2, 84, 84, 3\)"):
        policy.act(obs | {"agentview_image": np.zeros((2, 10, 10, 3), np.uint8)})


def test_evaluate(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "lift", dataclasses.replace(TASKS["lift"], horizon=3))
    episodes: list[int] = []
    policy = ddp_cli.load_policy(trained / "lift" / "tiny", inference_steps=1)
    result = ddp_cli.evaluate(policy, episodes=2, seed=5, on_episode=lambda episode: episodes.append(episode.seed))
    assert (result.success_rate, episodes) == (0.0, [5, 6])
    assert result.interval[0] == 0.0 < result.interval[1]


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        ddp_cli.load_policy(tmp_path / "nowhere")
