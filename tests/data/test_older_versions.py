"""Files written by version 0.1 are read with the same numbers.

version_0_1/ was written by ddp 0.1.0, with one torch thread:

door.zarr        two random episodes of the described task DOOR, with images
lift-state.zarr  four episodes of the scripted policy for lift, without images
run/             eight steps of a tiny policy on lift-state.zarr; step 8 without its training state
exported/        step 8 as ONNX
square-policy/   a checkpoint of the laptop preset for square, without its training state
expected.json    SHA-256 of every array, and predicted actions of the run, the export and the checkpoint

format_1/ was written by the last version without schemas, with one torch thread:

lift-absolute.zarr    two episodes of lift-state.zarr, with absolute actions
lift-absolute-state/  two steps of a tiny policy on it
exported/             the same as ONNX; limits in policy.json are `low` and `high` only
door-image/           two steps of a tiny policy on door.zarr, with crops of 32x48
expected.json         predicted and limited actions, limits and the normalizer of these policies
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOOR, TINY
from safetensors.numpy import load_file
from training.run_helpers import create, release, train_new_run

from ddp_cli.core.checkpoint import load_meta, load_policy, save_checkpoint
from ddp_cli.data.store import Store
from ddp_cli.data.store_copy import copy_store
from ddp_cli.deploy.example_observations import observations_from_store
from ddp_cli.deploy.runtime import Policy
from ddp_cli.inference.onnx_policy import obs_keys
from ddp_cli.inference.policy_limits import action_limits
from ddp_cli.presets import train_config
from ddp_cli.schema import Schema
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import Task, get_task
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.resume import resume_run
from ddp_cli.training.run import run_training

FILES = Path(__file__).parent / "version_0_1"
EXPECTED = json.loads((FILES / "expected.json").read_text())
STEP_4, STEP_8 = (FILES / "run" / "checkpoints" / f"step-{step:08}" for step in (4, 8))
TOLERANCE = 1e-6

FORMAT_1 = Path(__file__).parent / "format_1"
EXPECTED_1 = json.loads((FORMAT_1 / "expected.json").read_text())
POLICIES = {"lift-absolute-state": FORMAT_1 / "lift-absolute.zarr", "door-image": FILES / "door.zarr"}
"""Checkpoints of format 1, and the stores that they were trained on."""


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


def test_policy_of_images_predicts_the_same_actions() -> None:
    policy, _ = load_policy(FILES / "square-policy")
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


# -- before schemas --------------------------------------------------------------------------------


def task_of(name: str) -> Task:
    return get_task("lift") if name.startswith("lift") else task_from_json(DOOR)


def previous_action(dim: int) -> np.ndarray:
    """An action that may precede a chunk: for absolute actions at the origin, with the identity as rotation."""
    return np.zeros(7) if dim == 7 else np.array([0.0, 0, 0, 1, 0, 0, 0, 1, 0, 0])


def test_stores_without_a_schema_have_that_of_their_task(tmp_path: Path) -> None:
    for path in (FORMAT_1 / "lift-absolute.zarr", FILES / "lift-state.zarr", FILES / "door.zarr"):
        store = Store(path)
        assert (store.attrs["format"], "schema" in store.attrs) == (1, False)
        assert store.task == task_of(path.name)
        copy_store(store, tmp_path / path.name, None, None, 3, lambda *_: None)
        copy = Store(tmp_path / path.name)
        assert (copy.attrs["format"], copy.task) == (2, store.task)
        schema, parts = (
            Schema(**copy.attrs["schema"]),
            get_task("lift").action_parts(store.attrs["action"]["convention"]),
        )
        cameras = store.task.images(store.attrs["obs"])
        assert (schema.rate, schema.action, schema.cameras) == (20.0, parts, cameras)
        assert schema.vectors == store.task.schema.vectors
        for key in (*store.image_keys, *store.task.vectors("state"), "action"):
            np.testing.assert_array_equal(copy.read(key), store.read(key))


@pytest.mark.parametrize("name", POLICIES)
def test_checkpoints_without_a_schema_are_read(name: str, tmp_path: Path) -> None:
    expected = EXPECTED_1[name]
    policy, meta = load_policy(FORMAT_1 / name)
    assert load_meta(FORMAT_1 / name)["format"] == 1
    config = policy.config
    assert config.task == task_of(name)
    assert (config.image_keys, config.low_dim, config.action_dim) == (
        expected["images"], expected["vectors"], expected["action_dim"],
    )  # fmt: skip
    assert {key: value.tolist() for key, value in policy.normalizer.state_dict().items()} == expected["normalizer"]
    obs = observations_from_store(obs_keys(policy), Store(POLICIES[name]), 2, 3)
    action = policy.predict_action(obs, torch.Generator().manual_seed(0))["action"].numpy()
    np.testing.assert_allclose(action, expected["action"], rtol=0, atol=TOLERANCE)
    limits = action_limits(policy, meta)
    assert {key: limits.to_json()[key] for key in ("low", "high")} == expected["limits"]
    clamped = limits.clamp(3 * action[0], previous_action(limits.dim))
    np.testing.assert_allclose(clamped, expected["clamped"], rtol=0, atol=10 * TOLERANCE)

    save_checkpoint(tmp_path / "copy", config, policy.state_dict(), meta, None)
    copy, copy_meta = load_policy(tmp_path / "copy")
    assert (copy_meta["format"], copy.config) == (2, config)
    assert action_limits(copy, copy_meta) == limits
    again = copy.predict_action(obs, torch.Generator().manual_seed(0))["action"].numpy()
    np.testing.assert_array_equal(again, action)


@pytest.mark.parametrize("name", POLICIES)
def test_the_normalizer_of_a_new_run_is_unchanged(name: str, tmp_path: Path) -> None:
    """Bit for bit: it only compares and divides."""
    store, task, state = Store(POLICIES[name]), task_of(name), name.endswith("-state")
    settings = {"actions": "absolute"} if state else {"crop_shape": (32, 48), "object_loss": 0.0}
    config = train_config(task, "state" if state else "image", "laptop", None, TINY | {"steps": 2} | settings)
    run = release(create(tmp_path / "run", config, store))
    normalizer = run.trainer.policy.normalizer.state_dict()
    assert {key: value.tolist() for key, value in normalizer.items()} == EXPECTED_1[name]["normalizer"]


def test_a_run_without_a_schema_resumes_with_a_store_that_has_one(tmp_path: Path) -> None:
    old, store = load_meta(FORMAT_1 / "door-image"), Store(FILES / "door.zarr")
    settings = TINY | {"steps": 2, "checkpoint_every": 1, "crop_shape": (32, 48), "object_loss": 0.0}
    config = train_config(store.task, "image", "laptop", None, settings)
    train_new_run(store, tmp_path / "run", config, stop_at=1)
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["format"] == 2
    content |= {"format": 1, "train": content["train"] | {"policy": old["policy"]}, "store": old["store"]}
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    copy_store(store, tmp_path / "copy.zarr", None, None, 3, lambda *_: None)
    run = resume_run(tmp_path / "run", torch.device("cpu"), pytest.fail, lambda _: None, data=tmp_path / "copy.zarr")
    assert (run.trainer.step_number, run.trainer.config) == (1, config)
    checkpoint = run_training(run, Callbacks())
    assert checkpoint is not None
    assert load_meta(checkpoint)["format"] == 2


def test_limits_of_an_earlier_policy_json_are_those_of_its_checkpoint() -> None:
    exported = Policy.load(FORMAT_1 / "exported")
    assert sorted(exported.spec["limits"]) == ["high", "low"]
    policy, meta = load_policy(FORMAT_1 / "lift-absolute-state")
    assert exported.limits == action_limits(policy, meta)
    obs = observations_from_store(obs_keys(policy), Store(FORMAT_1 / "lift-absolute.zarr"), 2, 3)
    noise = exported.sample_noise(np.random.default_rng(0))
    action = exported.act({key: windows[0].numpy() for key, windows in obs.items()}, noise, previous_action(10))
    np.testing.assert_allclose(action, EXPECTED_1["exported"]["action"], rtol=0, atol=TOLERANCE)
