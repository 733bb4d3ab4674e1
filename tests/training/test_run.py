from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOOR, TINY, tiny_config
from training.run_helpers import create, release, resume

from ddp_cli.core.checkpoint import load_policy, save_checkpoint
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import CheckpointError, ConfigError, DdpError
from ddp_cli.presets import train_config
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import get_task, robosuite_task
from ddp_cli.train_config import TrainConfig


def test_a_run_starts_with_the_weights_of_another_policy(lift_store: Store, tmp_path: Path, trained: Path) -> None:
    checkpoint = (trained / "lift/tiny/checkpoints/best").resolve()
    run = create(tmp_path / "run", tiny_config(lr=1e-9), lift_store, init_from=checkpoint)
    other, _ = load_policy(checkpoint)
    for weight, expected in zip(run.trainer.policy.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(weight, expected)
    release(run)
    resumed = resume(tmp_path / "run")  # before its first step: the other run is not needed any more
    assert torch.equal(resumed.trainer.ema.shadow[0], next(other.parameters()))
    release(resumed)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000000")
    with pytest.raises(CheckpointError, match=f"has no checkpoint, and it started with the weights of '{checkpoint}'"):
        resume(tmp_path / "run")


def test_a_policy_without_prefix_steps_may_be_the_start_of_one_with_them(
    lift_store: Store, tmp_path: Path, trained: Path
) -> None:
    """The mark of given actions starts at zero. The other way round it would be lost, so that is refused."""
    checkpoint = (trained / "lift/tiny/checkpoints/best").resolve()
    run = release(create(tmp_path / "run", tiny_config(prefix_steps=4), lift_store, init_from=checkpoint))
    weights = run.trainer.policy.state_dict()
    assert not weights.pop("denoiser.prefix_emb").any()
    other, _ = load_policy(checkpoint)
    assert all(torch.equal(x, weights[name]) for name, x in other.state_dict().items())
    run.trainer.step()
    assert run.trainer.policy.denoiser.prefix_emb.any()
    with_prefix = save_policy(tmp_path / "with", tiny_config(prefix_steps=4))
    with pytest.raises(ConfigError, match="denoiser.prefix_emb is not expected"):
        create(tmp_path / "back", tiny_config(), lift_store, init_from=with_prefix)


def test_initial_weights_that_do_not_fit_are_listed(lift_store: Store, tmp_path: Path, trained: Path) -> None:
    checkpoint = (trained / "lift/tiny/checkpoints/best").resolve()
    with pytest.raises(
        ConfigError,
        match=r"do not fit, 1 difference: n_emb is 16, expected 8. Train the same",  # not all weights, besides
    ):
        create(tmp_path / "other", tiny_config(n_emb=8), lift_store, init_from=checkpoint)
    assert not (tmp_path / "other").exists()
    with pytest.raises(
        ConfigError, match="2 differences: n_head is 2, expected 4; prediction_type is epsilon, expected sample"
    ):
        create(tmp_path / "x", tiny_config(n_head=4, prediction_type="sample"), lift_store, init_from=checkpoint)


def save_policy(folder: Path, config: TrainConfig) -> Path:
    policy = DiffusionPolicy(config.policy)
    save_checkpoint(folder, config.policy, policy.state_dict(), {"render": "fast"}, None)
    return folder


@pytest.mark.parametrize(
    ("settings", "differences"),
    [
        ({"pred_action_steps_only": True}, "pred_action_steps_only is True, expected False"),
        ({"causal_attn": False}, "causal_attn is False, expected True"),
        ({"beta_schedule": "linear"}, "beta_schedule is linear, expected squaredcos_cap_v2"),
        ({"num_train_timesteps": 50}, "num_train_timesteps is 50, expected 100"),
        ({"encoder": "resnet18", "crop_shape": (80, 68)}, r"crop_shape is \(80, 68\), expected \(76, 76\)"),
    ],
)
def test_settings_that_change_the_meaning_of_weights_are_named(
    settings: dict, differences: str, lift_store: Store, tmp_path: Path
) -> None:
    checkpoint = save_policy(tmp_path / "checkpoint", tiny_config(**settings))
    config = tiny_config(**{k: v for k, v in settings.items() if k == "encoder"})
    with pytest.raises(ConfigError, match=f"do not fit, 1 difference: {differences}. Train the same"):
        create(tmp_path / "run", config, lift_store, init_from=checkpoint)


def test_observations_of_the_task_are_compared_in_their_order(lift_store: Store, tmp_path: Path) -> None:
    """Weights of the same shapes, for the same features in another order or for another object."""
    config = tiny_config()
    lift = lift_store.task
    parts = lift.robosuite.object
    swapped = robosuite_task("swapped", "Lift", cameras=dict(reversed(lift.robosuite.cameras.items())), object=parts)
    quat_first = {k: lift.low_dim[k] for k in ("robot0_eef_quat", "robot0_eef_pos", "robot0_gripper_qpos")}
    reordered = robosuite_task("reordered", "Lift", low_dim=quat_first, object=parts)
    for task, message in (
        (swapped, "cameras is robot0_eye_in_hand_image .*, expected agentview_image"),
        (reordered, r"low_dim is robot0_eef_quat \(4, identity\), robot0_eef_pos \(3\), .*, expected robot0_eef_pos"),
    ):
        policy = config.policy.model_copy(update={"task": task})
        other = save_policy(tmp_path / task.name, config.model_copy(update={"policy": policy}))
        with pytest.raises(ConfigError, match=f"1 difference: {message}"):
            create(tmp_path / "run", config, lift_store, init_from=other)


def test_the_object_of_state_policies_is_compared(lift_store: Store, tmp_path: Path) -> None:
    config = tiny_config(obs="state")
    object_ = {"nut_pos": 3, "nut_quat": 4, "gripper_to_nut": 3}
    task = robosuite_task("nut", "Lift", object=object_)
    # State policies have neither encoders nor crops.
    policy = config.policy.model_copy(update={"task": task, "encoder": "resnet18", "crop_shape": (60, 60)})
    other = save_policy(tmp_path / "nut", config.model_copy(update={"policy": policy}))
    with pytest.raises(ConfigError, match=r"1 difference: object is nut_pos \(3\), .*, expected cube_pos \(3\)"):
        create(tmp_path / "run", config, lift_store, init_from=other)


def test_the_length_of_a_trajectory_of_executed_actions_is_compared(lift_store: Store, tmp_path: Path) -> None:
    checkpoint = save_policy(tmp_path / "other", tiny_config(pred_action_steps_only=True, n_action_steps=4))
    with pytest.raises(ConfigError, match="1 difference: n_action_steps is 4, expected 8"):
        create(tmp_path / "run", tiny_config(pred_action_steps_only=True), lift_store, init_from=checkpoint)


def test_settings_that_leave_the_weights_as_they_are_may_differ(lift_store: Store, tmp_path: Path) -> None:
    other = tiny_config(
        p_drop_attn=0.2, p_drop_emb=0.1, sampler="ddim", num_inference_steps=7, timestep_spacing="trailing",
        clip_sample=False, n_action_steps=4, lr=0.5, seed=3,
    )  # fmt: skip
    task = robosuite_task("push", "Push", horizon=9)
    other = other.model_copy(update={"policy": other.policy.model_copy(update={"task": task})})
    checkpoint = save_policy(tmp_path / "checkpoint", other)
    run = release(create(tmp_path / "run", tiny_config(), lift_store, init_from=checkpoint))
    expected, _ = load_policy(checkpoint)
    assert torch.equal(run.trainer.policy.denoiser.head.weight, expected.denoiser.head.weight)


def test_an_existing_run_is_not_started_again(lift_store: Store, trained: Path) -> None:
    with pytest.raises(DdpError, match="--resume"):
        create(trained / "lift" / "tiny", tiny_config(), lift_store)


def test_a_store_of_another_task_is_rejected(lift_store: Store, tmp_path: Path) -> None:
    config = tiny_config()
    other = config.model_copy(update={"policy": config.policy.model_copy(update={"task": get_task("can")})})
    with pytest.raises(ConfigError, match="lift.*can"):
        create(tmp_path / "run", other, lift_store)


def test_a_task_without_an_object_trains_on_its_own_store_only(tmp_path: Path) -> None:
    task = task_from_json(DOOR | {"object": {}})
    action = {"convention": "delta", "dim": 7}
    attributes = {"render": "fast", "obs": "image", "env_args": {}, "versions": {}, "action": action}
    writer = StoreWriter(tmp_path / "s.zarr", task, [20], attributes | {"source": {"sha256": "x", "demos": [0]}}, 3)
    arrays = {"frontview_image": np.zeros((20, 84, 84, 3), np.uint8), "action": np.zeros((20, 7), np.float32)}
    writer.append(arrays | {k: np.ones((20, w), np.float32) for k, w in task.low_dim.items()})
    writer.finish({})
    store = Store(tmp_path / "s.zarr")
    run = create(tmp_path / "run", train_config(task, "image", "laptop", None, TINY | {"steps": 1}), store)
    assert set(run.trainer.step()) == {"noise", "action", "total", "grad_norm"}
    run.trainer.load_state(run.trainer.state())
    other = task_from_json(DOOR | {"object": {}, "low_dim": {}})
    with pytest.raises(ConfigError, match="'door': vectors.robot0_eef_pos 3 instead of absent"):
        create(tmp_path / "other", train_config(other, "image", "laptop", None, TINY | {"steps": 1}), store)
