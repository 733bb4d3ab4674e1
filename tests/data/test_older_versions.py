"""Files written by version 0.1 are read with the same numbers.

version_0_1/ was written by ddp 0.1.0, with one torch thread:

door.zarr        two random episodes of the described task DOOR, with images
lift-state.zarr  four episodes of the scripted policy for lift, without images
run/             eight steps of a tiny policy on lift-state.zarr; step 8 without its training state
exported/        step 8 as ONNX
expected.json    SHA-256 of every array, and predicted actions of the run, the export and sample_data/square-policy
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOOR
from safetensors.numpy import load_file

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.data.store import Store
from ddp_cli.deploy.export import observations_from_store
from ddp_cli.deploy.runtime import Policy
from ddp_cli.inference.onnx_policy import obs_keys
from ddp_cli.task_file import task_from_json
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.resume import resume_run
from ddp_cli.training.run import run_training

FILES = Path(__file__).parent / "version_0_1"
SQUARE_POLICY = Path(__file__).parents[2] / "sample_data" / "square-policy"
EXPECTED = json.loads((FILES / "expected.json").read_text())
STEP_4, STEP_8 = (FILES / "run" / "checkpoints" / f"step-{step:08}" for step in (4, 8))
TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # sums depend on the number of threads; the fixture in conftest restores it


@pytest.fixture
def observations() -> dict[str, torch.Tensor]:
    policy, _ = load_policy(STEP_8)
    return observations_from_store(obs_keys(policy), Store(FILES / "lift-state.zarr"), 2, 3)


@pytest.mark.parametrize("name", ["door.zarr", "lift-state.zarr"])
def test_store_arrays_are_unchanged(name: str) -> None:
    store, expected = Store(FILES / name), EXPECTED[name]
    keys = [*store.image_keys, *store.task.vectors("state"), "action"]
    assert {key: hashlib.sha256(store.read(key).tobytes()).hexdigest() for key in keys} == expected["sha256"]
    assert store.episode_ends.tolist() == expected["episode_ends"]
    assert store.content_hash() == expected["content_hash"]


def test_store_attributes_are_read() -> None:
    door, lift = Store(FILES / "door.zarr"), Store(FILES / "lift-state.zarr")
    assert door.task == task_from_json(DOOR)
    assert lift.task.name == EXPECTED["lift-state.zarr"]["task"]
    assert (door.check["result"], lift.check["result"]) == ("passed", "passed")
    assert (door.attrs["obs"], lift.attrs["obs"]) == ("image", "state")
    for store, env_name in ((door, "Door"), (lift, "Lift")):
        assert store.attrs["env_args"]["env_name"] == env_name
        assert (store.attrs["render"], store.attrs["action"]["convention"]) == ("fast", "delta")
        assert sorted(store.attrs["versions"]) == ["mujoco", "robosuite"]
        assert sorted(store.attrs["source"]) == ["demos", "file", "left_out", "observations", "sha256"]


def test_checkpoint_predicts_the_same_actions(observations: dict[str, torch.Tensor]) -> None:
    policy, meta = load_policy(STEP_8)
    assert (meta["step"], meta["total_steps"]) == (8, 8)
    actions = policy.predict_action(observations, torch.Generator().manual_seed(0))["action"]
    np.testing.assert_allclose(actions.numpy(), EXPECTED["run"]["action"], rtol=0, atol=TOLERANCE)


def test_exported_policy_predicts_the_same_actions(observations: dict[str, torch.Tensor]) -> None:
    policy = Policy.load(FILES / "exported")
    noise = policy.sample_noise(np.random.default_rng(0))
    actions = policy.act({key: windows[0].numpy() for key, windows in observations.items()}, noise)
    np.testing.assert_allclose(actions, EXPECTED["exported"]["action"], rtol=0, atol=TOLERANCE)


def test_sample_policy_predicts_the_same_actions() -> None:
    policy, _ = load_policy(SQUARE_POLICY)
    generator = torch.Generator().manual_seed(5)
    obs = {
        key: torch.randint(0, 256, (1, 2, 3, 84, 84), dtype=torch.uint8, generator=generator)
        for key in policy.config.image_keys
    }
    obs |= {key: torch.randn(1, 2, width, generator=generator) for key, width in policy.config.low_dim.items()}
    policy.set_sampler("ddim", 4)
    actions = policy.predict_action(obs, torch.Generator().manual_seed(0))["action"]
    np.testing.assert_allclose(actions.numpy(), EXPECTED["square-policy"]["action"], rtol=0, atol=TOLERANCE)


def test_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(FILES / "run", run_folder, ignore=shutil.ignore_patterns(STEP_8.name))
    config = json.loads((run_folder / "config.json").read_text())
    config["data"] = str(FILES / "lift-state.zarr")
    (run_folder / "config.json").write_text(json.dumps(config))
    run = resume_run(run_folder, torch.device("cpu"), pytest.fail, lambda _: None)
    assert run.trainer.step_number == 4
    checkpoint = run_training(run, Callbacks())
    assert checkpoint is not None
    weights, expected = load_file(checkpoint / "model.safetensors"), load_file(STEP_8 / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)
