"""Schemas, and a robot of another kind through store, training, checkpoint and export, without a simulator."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DOOR, TINY, ddp, ok, ok_json, read_video, refused
from deploy.exporting import export_checkpoint
from deploy.test_server import serving
from training.run_helpers import create, release, train_new_run

from ddp_cli.core.checkpoint import load_meta, load_policy
from ddp_cli.data.preview import write_preview
from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.deploy.client import Client, ServerError
from ddp_cli.deploy.example_observations import observations_from_store
from ddp_cli.deploy.exported_policy import ExportedAgent
from ddp_cli.deploy.runtime import ChunkRunner, Policy
from ddp_cli.errors import ConfigError, DataError
from ddp_cli.inference.agent import PolicyAgent
from ddp_cli.inference.onnx_policy import obs_keys
from ddp_cli.inference.policy_limits import action_limits
from ddp_cli.presets import train_config
from ddp_cli.schema import Schema
from ddp_cli.task_difference import describe_difference
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import TASKS
from ddp_cli.video.video_info import read_video_info

ARM: dict[str, Any] = {
    "name": "arm",
    "schema": {
        "rate": 50,
        "cameras": {
            "top": {"height": 48, "width": 64, "source": "observation.images.top"},
            "wrist": {"height": 40, "width": 32, "channels": 1},
        },
        "vectors": {
            "joints": {"width": 3, "unit": "rad", "names": ["shoulder", "elbow", "wrist"]},
            "torque": {"width": 2, "unit": "N m", "normalization": "gaussian"},
        },
        "action": [
            {"name": "joints", "width": 3, "representation": "absolute", "unit": "rad"},
            {"name": "tool", "width": 4, "representation": "absolute", "rotation": "quaternion-xyzw"},
            {"name": "gripper", "width": 1, "gripper": True, "low": [0], "high": [1], "normalization": "identity"},
        ],
    },
}
"""Two cameras of different sizes, one of them gray, at 50 Hz; actions of three kinds. No simulator."""


def with_schema(**changes: object) -> dict[str, Any]:
    return ARM | {"schema": ARM["schema"] | changes}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three episodes of random values."""
    path, task, rng = tmp_path_factory.mktemp("arm") / "arm.zarr", task_from_json(ARM), np.random.default_rng(0)
    attributes = {
        "render": "full", "obs": "image", "env_args": {}, "versions": {},
        "action": {"convention": "recorded", "dim": 8}, "source": {"sha256": "x", "demos": [0, 1, 2]},
    }  # fmt: skip
    lengths = [30, 20, 25]
    writer = StoreWriter(path, task, lengths, attributes, 3)
    for n in lengths:
        cameras = task.images("image").items()
        arrays = {key: rng.integers(0, 256, (n, *camera.shape)).astype(np.uint8) for key, camera in cameras}
        arrays |= {key: rng.normal(5, 2, (n, width)).astype(np.float32) for key, width in task.low_dim.items()}
        gripper, rotation = rng.uniform(0, 1, (n, 1)), rng.normal(size=(n, 4))
        rotation /= np.linalg.norm(rotation, axis=1, keepdims=True)
        arrays["action"] = np.hstack([rng.uniform(-2, 3, (n, 3)), rotation, gripper]).astype(np.float32)
        writer.append(arrays)
    writer.finish({})
    return Store(path)


@pytest.fixture(scope="module")
def run_folder(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = TINY | {"steps": 2, "crop_ratio": 0.75, "val_ratio": 0.3}
    folder = tmp_path_factory.mktemp("runs") / "arm" / "a"
    train_new_run(store, folder, train_config(store.task, "image", "laptop", None, settings))
    return folder


@pytest.fixture(scope="module")
def checkpoint(run_folder: Path) -> Path:
    return (run_folder / "checkpoints" / "last").resolve()


# -- schemas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*TASKS.values(), task_from_json(ARM), task_from_json(DOOR)], ids=lambda t: t.name)
def test_json_round_trip(task: Any) -> None:
    stored = json.loads(json.dumps(task.schema.to_json()))
    restored = Schema(**stored)
    assert restored == task.schema
    assert restored.to_json() == stored
    assert list(restored.vectors) == list(task.schema.vectors)


def test_parts_of_an_action_follow_each_other() -> None:
    schema = task_from_json(ARM).schema
    assert schema.action_dim == 8
    assert schema.action_slices() == {"joints": slice(0, 3), "tool": slice(3, 7), "gripper": slice(7, 8)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0}, r"schema: rate = 0: .*Valid: the control rate in Hz, above 0 and up to 10000"),
        ({"rates": 1}, "unknown key 'rates', did you mean 'rate'"),
        ({"cameras": {"top": {"height": 48}}}, r"schema: cameras\.top: the key 'width' is missing"),
        ({"cameras": {"top": {"height": 48, "width": 64, "channels": 4}}}, r"cameras\.top: unknown channels '4'"),
        ({"cameras": {}, "vectors": {}}, "a step has no observation. Correct the schema"),
        ({"cameras": {"joints": {"height": 48, "width": 64}}}, "'joints' is a camera and a vector"),
        ({"vectors": {"joint.pos": {"width": 3}}}, "invalid key 'joint.pos': use at most 64 letters"),
        ({"vectors": {"action": {"width": 3}}}, "invalid key 'action': a policy uses this name itself"),
        ({"vectors": {"joints": {"width": 3, "names": ["a"]}}}, "names has 1 entries, expected 3"),
        ({"action": []}, r"schema: action = \[\]"),
        ({"action": [{"name": "a", "width": 1}] * 2}, "the names of parts a, a are not unique"),
        (
            {"action": [{"name": "a", "width": 3, "rotation": "quaternion-xyzw"}]},
            "width 3 of 'a' does not fit .* has 4",
        ),
        ({"action": [{"name": "a", "width": 2, "low": [0]}]}, "low has 1 entries, expected 2"),
        ({"action": [{"name": "a", "width": 1, "low": [2], "high": [1]}]}, "low .* of 'a' is above high"),
        ({"action": [{"name": "a", "width": 1, "representation": "relative"}]}, "'relative'. Valid: delta, absolute"),
    ],
)
def test_invalid_schemas_are_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        task_from_json(with_schema(**changes), "'arm.json'")
    assert caught.value.message.startswith("'arm.json': ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task["simulator"].update(cameras={}), "schema.cameras = .'frontview_image'"),
        (lambda task: task["schema"]["cameras"]["frontview_image"].update(channels=1), "frontview_image.channels = 1"),
        (lambda task: task["simulator"].update(object={"door_pos": 3}), "vectors.object.width = 7 .* expected 3"),
        (lambda task: task["schema"]["action"].pop(), "schema.action = .* expected .*gripper"),
        (lambda task: task["schema"]["action"][0].update(unit="mm"), "schema.action.position = .*mm"),
    ],
)
def test_a_schema_has_to_fit_its_simulator(change: Any, message: str) -> None:
    task = task_from_json(DOOR).to_json()
    assert isinstance(task, dict)
    assert task_from_json(task) == task_from_json(DOOR)
    change(task)
    with pytest.raises(ConfigError, match=message):
        task_from_json(task)


def test_image_sizes_of_a_simulated_task_are_free() -> None:
    description = task_from_json(DOOR).to_json()
    assert isinstance(description, dict)
    description["schema"]["cameras"]["frontview_image"] = {"height": 48, "width": 64}
    task = task_from_json(description)
    assert task.images("image")["frontview_image"].shape == (48, 64, 3)
    difference = describe_difference(task, task_from_json(DOOR))
    assert difference == "cameras.frontview_image.shape [48, 64, 3] instead of [84, 84, 3]"


def test_examples_in_the_documentation_are_tasks() -> None:
    text = (Path(__file__).parents[1] / "docs" / "own-data.md").read_text()
    tasks = [
        task_from_json(json.loads(block))
        for block in re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]
    assert [(task.name, task.simulator is None) for task in tasks] == [("my_door", False), ("arm", True)]


def test_parts_are_compared_in_their_order() -> None:
    task, parts = task_from_json(ARM), ARM["schema"]["action"]
    other = task_from_json(with_schema(action=[parts[1], parts[0], parts[2]]))
    assert describe_difference(task, other) == "action.joints.index 0 instead of 1, action.tool.index 1 instead of 0"
    fewer = task_from_json(with_schema(action=parts[:2]))
    assert describe_difference(task, fewer) == "action.gripper 1 instead of absent"


# -- a robot of another kind -----------------------------------------------------------------------


def test_a_store_keeps_the_schema(store: Store) -> None:
    assert store.task == task_from_json(ARM)
    assert Schema(**store.attrs["schema"]) == store.task.schema
    assert store.attrs["format"] == 2
    assert store.shape("top")[1:] == (48, 64, 3)
    assert store.shape("wrist")[1:] == (40, 32, 1)


def test_a_store_whose_actions_have_another_width_is_damaged(store: Store, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store.path, tmp_path / "arm.zarr"))
    metadata = json.loads((copy / "zarr.json").read_text())
    metadata["attributes"]["action"]["dim"] = 7
    (copy / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match="the attribute 'action' is damaged"):
        Store(copy)


def test_preview_shows_images_of_different_sizes(store: Store, tmp_path: Path) -> None:
    write_preview(store, tmp_path / "p.png")
    write_preview(store, tmp_path / "p.mp4")
    assert read_video_info(tmp_path / "p.mp4").rate == 50
    assert len(read_video(tmp_path / "p.mp4")) == 30


def test_normalization_follows_the_schema(store: Store, checkpoint: Path) -> None:
    normalizer = load_policy(checkpoint)[0].normalizer
    torque = normalizer.normalize("torque", torch.from_numpy(store.read("torque")))
    assert float(torque.mean().abs()) < 0.2  # held-out episodes are not in the statistics
    assert 0.8 < float(torque.std()) < 1.2
    action = torch.from_numpy(store.read("action"))
    normalized = normalizer.normalize("action", action)
    assert normalized[:, :3].abs().max() < 1.2
    torch.testing.assert_close(normalized[:, 7:], action[:, 7:])


def test_a_checkpoint_keeps_the_schema(store: Store, run_folder: Path, checkpoint: Path) -> None:
    policy, meta = load_policy(checkpoint)
    assert (meta["format"], meta["action"]["convention"]) == (2, "recorded")
    assert policy.config.task == store.task
    assert [policy.config.crop(key) for key in policy.config.image_keys] == [(36, 48), (30, 24)]
    logged = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert any("val_loss" in line for line in logged)
    assert not any("position_error_mm" in line for line in logged)


def test_limits_follow_the_parts(store: Store, checkpoint: Path) -> None:
    policy, meta = load_policy(checkpoint)
    limits, actions = action_limits(policy, meta), store.read("action")
    margin = 0.05 * (actions.max(0) - actions.min(0))[:3]
    np.testing.assert_allclose(limits.low, [*(actions.min(0)[:3] - margin), *[-np.inf] * 4, 0.0], rtol=1e-6)
    np.testing.assert_allclose(limits.high, [*(actions.max(0)[:3] + margin), *[np.inf] * 4, 1.0], rtol=1e-6)
    assert limits.quaternions == (3,)


def test_an_export_without_the_store_compares_random_observations(checkpoint: Path, tmp_path: Path) -> None:
    """Such as that of a checkpoint that was copied from another machine."""
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copied"))
    result = ddp("export", copy, "--out", tmp_path / "policy")
    assert "random observations are compared; --data names a store" in ok(result).stderr
    assert Policy.load(tmp_path / "policy").spec["task"]["name"] == "arm"
    assert json.loads((tmp_path / "policy/proof.json").read_text())["observations"] == "random observations"
    assert "- compared on random observations" in (tmp_path / "policy/README.md").read_text()


def test_an_export_runs_without_the_training_code(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    proof = export_checkpoint(checkpoint, store, tmp_path / "policy", seeds=(1,)).proof
    assert proof["episodes"] == {"not_run": "the task 'arm' has no simulator."}
    spec = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert "at 50 Hz" in (tmp_path / "policy" / "README.md").read_text()
    assert (spec["control_hz"], spec["action_parts"]) == (50, ARM["schema"]["action"])
    assert spec["obs"]["wrist"] == {"shape": [40, 32, 1], "dtype": "uint8", "unit": "gray, 0 to 255, upright"}
    assert spec["obs"]["joints"]["names"] == ["shoulder", "elbow", "wrist"]
    assert load_meta(checkpoint)["action_range"] == spec["action_range"]
    policy, meta = load_policy(checkpoint)
    exported = Policy.load(tmp_path / "policy")
    obs = observations_from_store(obs_keys(policy), store, 2, 1)
    window = {key: value[0].numpy() for key, value in obs.items()}
    window = {key: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for key, value in window.items()}
    noise = exported.sample_noise(np.random.default_rng(0))
    action = exported.act(window, noise, exported.limits.neutral_action())
    assert action.shape == (8, 8)
    agents = PolicyAgent(policy), ExportedAgent(exported)
    assert [agent.control_hz for agent in agents] == [50, 50]
    assert exported.limits == action_limits(policy, meta)
    np.testing.assert_allclose(np.linalg.norm(action[:, 3:7], axis=1), 1.0, rtol=1e-5)
    runner = ChunkRunner(exported, seed=0)
    frame = {key: value[0] for key, value in window.items()}
    expected = runner.action(frame)
    assert expected.shape == (8,)
    with serving(exported) as (address, _), Client(address) as client:
        client.reset(0)
        assert client.describe()["action_parts"] == ARM["schema"]["action"]
        np.testing.assert_array_equal(client.action(frame), expected)
        with pytest.raises(ServerError, match=r"'wrist' has shape \(40, 32, 3\), expected \(40, 32, 1\)"):
            client.action(frame | {"wrist": frame["wrist"].repeat(3, -1)})


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["laptop", "paper"])
@pytest.mark.parametrize("obs", ["image", "state"])
def test_the_command_trains_with_both_presets(store: Store, tmp_path: Path, preset: str, obs: str) -> None:
    (tmp_path / "arm.json").write_text(json.dumps(ARM))
    settings = [x for key, value in TINY.items() for x in ("--set", f"{key}={value}")]
    command = (
        "train", "--task", tmp_path / "arm.json", "--data", store.path, "--obs", obs, "--preset", preset,
        "--runs", tmp_path, "--name", "a", "--steps", 2, *settings,
    )  # fmt: skip
    if obs == "image":
        too_large = refused(ddp(*command, "--set", "crop_shape=[76,76]"))
        assert "crop_shape (76, 76) must lie between 16 and 48 pixels, the size of the images 'top'" in too_large
    ok(ddp(*command))
    policy, meta = load_policy((tmp_path / "arm" / "a" / "checkpoints" / "last").resolve())
    crops = [policy.config.crop(key) for key in policy.config.image_keys]
    assert crops == ([(43, 58), (36, 29)] if obs == "image" else [])  # 0.9 of the sides
    assert (policy.config.actions, policy.config.action_dim, meta["step"]) == ("recorded", 8, 2)
    message = refused(ddp(*command, "--eval-every", 1))
    assert "eval_every 1: the task 'arm' has no simulator" in message


def test_other_schemas_are_refused_as_initial_weights(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    settings = TINY | {"steps": 1, "crop_ratio": 0.75}
    config = train_config(store.task, "image", "laptop", None, settings)
    release(create(tmp_path / "same", config, store, init_from=checkpoint))
    meta = json.loads((checkpoint / "config.json").read_text())
    meta["policy"]["task"]["schema"]["rate"] = 25
    meta["policy"]["task"]["schema"]["action"][0]["unit"] = "degrees"
    meta["policy"]["task"]["schema"]["action"][1]["rotation"] = "quaternion-wxyz"
    meta["policy"]["task"]["schema"]["vectors"]["joints"]["names"] = ["wrist", "elbow", "shoulder"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(meta))
    (other / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"action is joints \(3, absolute, degrees\).*rate is Hz \(25.0\)") as error:
        create(tmp_path / "run", config, store, init_from=other)
    assert "tool (4, absolute, quaternion-wxyz)" in str(error.value)
    assert "the values of joints are wrist, elbow, shoulder, expected shoulder, elbow, wrist" in str(error.value)


def test_what_needs_a_simulator_says_so(checkpoint: Path, lift_demos: Path, tmp_path: Path) -> None:
    (tmp_path / "arm.json").write_text(json.dumps(ARM))
    assert "the task 'arm' has no simulator" in refused(ddp("rollout", checkpoint, "--video", tmp_path / "v.mp4"))
    command = ("convert", lift_demos, "--task", tmp_path / "arm.json", "--out", tmp_path / "s.zarr")
    assert "the task 'arm' has no simulator" in refused(ddp(*command))  # and is not converted without a replay
    assert "no file 'nowhere.hdf5'" in refused(ddp("convert", "nowhere.hdf5", *command[2:]))


def test_inspect_describes_the_store_and_the_checkpoint(store: Store, checkpoint: Path) -> None:
    assert ok_json("inspect", store.path)["actions"] == "recorded"
    assert ok_json("inspect", checkpoint)["task"] == "arm"
