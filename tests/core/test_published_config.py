"""The `cfg` of published checkpoints: what changes the policy is taken over or refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ddp, ok, refused
from core.published_checkpoint import OBS_KEYS, TARGET, low_dim_cfg, published_cfg, save_ckpt, shape_meta
from core.published_recipe import CAMERAS, LOW_DIM, inputs, low_dim_weights, state_dict
from torch import Tensor

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.published import import_published, load_published
from ddp_cli.core.published_config import published_config
from ddp_cli.core.published_observations import feature_order
from ddp_cli.errors import CheckpointError
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.tasks import get_task

CONFIG = PolicyConfig(task="square", n_layer=2, n_emb=32, num_inference_steps=5, timestep_spacing="leading")
ORDER = ("robot0_gripper_qpos", CAMERAS[1], "robot0_eef_quat", CAMERAS[0], "robot0_eef_pos")
OBJECT_LAST = ("robot0_gripper_qpos", "robot0_eef_pos", "robot0_eef_quat", "object")
PATH = Path("m.ckpt")


def features_in_order(policy: DiffusionPolicy, obs: dict[str, Tensor], order: Sequence[str]) -> Tensor:
    """Features concatenated in `order`, as the published encoder does it; 64 per camera."""
    widths = [
        64 if key in CAMERAS else policy.config.low_dim[key] for key in (*policy.encoders, *policy.config.low_dim)
    ]
    parts = dict(zip((*policy.encoders, *policy.config.low_dim), policy.encode_obs(obs).split(widths, -1), strict=True))
    return torch.cat([parts[key] for key in order], dim=-1)


@pytest.mark.parametrize("settings", [{}, {"obs_as_cond": False, "time_as_cond": False}, {"obs_as_cond": False}])
def test_features_are_permuted_to_the_published_order(settings: dict[str, Any]) -> None:
    """The network as it is saved, on features in the published order, is the reference."""
    config = PolicyConfig(**CONFIG.model_dump() | settings)
    weights = state_dict(config)
    saved, imported = import_published(weights, config), import_published(weights, config, ORDER)
    obs, _ = inputs(2)
    x, timesteps = torch.randn(2, 10, imported.trajectory_shape[1]), torch.tensor([3, 70])
    features, published_features = imported.encode_obs(obs), features_in_order(saved, obs, ORDER)
    if config.obs_as_cond:
        expected = saved.denoiser(x, timesteps, published_features)
        actual = imported.denoiser(x, timesteps, features)
        unpermuted = saved.denoiser(x, timesteps, features)
    else:
        x[:, :2, 7:] = features
        columns = torch.cat([torch.arange(7), 7 + torch.cat(published_columns(ORDER))])
        assert torch.equal(x[..., columns][:, :2, 7:], published_features)
        expected = saved.denoiser(x[..., columns], timesteps)
        actual = imported.denoiser(x, timesteps)[..., columns]
        unpermuted = saved.denoiser(x, timesteps)[..., columns]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert (unpermuted - expected).abs().max() > 1e-3


def published_columns(order: Sequence[str]) -> list[Tensor]:
    """Columns of this project's features, per key in `order`."""
    widths = dict.fromkeys(CAMERAS, 64) | LOW_DIM
    positions = dict(zip(widths, torch.arange(137).split(list(widths.values())), strict=True))
    return [positions[key] for key in order]


def test_checkpoints_that_differ_in_the_order_of_features_are_the_same_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = state_dict(CONFIG)
    name = "model.cond_obs_emb.weight"
    reordered = weights | {name: weights[name][:, torch.cat(published_columns(ORDER))]}
    save_ckpt(tmp_path / "a.ckpt", published_cfg(), weights, monkeypatch)
    save_ckpt(tmp_path / "b.ckpt", published_cfg(shape_meta=shape_meta(ORDER)), reordered, monkeypatch)
    obs, _ = inputs(2)
    actions = []
    for stem in "ab":
        ok(ddp("import", tmp_path / f"{stem}.ckpt", "--out", tmp_path / stem))
        policy, _ = load_policy(tmp_path / stem)
        actions.append(policy.predict_action(obs, torch.Generator().manual_seed(1))["action_pred"])
    assert torch.equal(*actions)


def test_low_dim_observations_are_read_in_the_order_of_obs_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PolicyConfig(task="can", obs="state", n_layer=2, n_emb=32)
    weights = low_dim_weights(config)
    policy, meta = load_published(save_ckpt(tmp_path / "m.ckpt", low_dim_cfg(OBJECT_LAST), weights, monkeypatch))
    assert "assumed" not in meta
    obs = {key: torch.randn(2, 2, width) for key, width in config.low_dim.items()}
    # As published: one vector in the order of obs_keys, normalized as a whole.
    vector = torch.cat([obs[key] for key in OBJECT_LAST], -1)
    scale, offset = (weights[f"normalizer.params_dict.obs.{part}"] for part in ("scale", "offset"))
    x, timesteps = torch.randn(2, 10, 7), torch.tensor([3, 70])
    expected = import_published(weights, config).denoiser(x, timesteps, vector * scale + offset)
    torch.testing.assert_close(policy.denoiser(x, timesteps, policy.encode_obs(obs)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "task"),
    [("lift_image_abs", "lift"), ("can", "can"), ("square_lowdim", "square"), ("square_image_mh", "square")],
)
def test_names_of_published_tasks_are_known(name: str, task: str) -> None:
    config = published_config(published_cfg() | {"task_name": name}, PATH)
    assert config.task.name == task


@pytest.mark.parametrize("name", ["square_d2", "canvas_cleanup", "threading_image", "lift2", "can_image_d0", "Square"])
def test_other_tasks_are_refused(name: str) -> None:
    for cfg in (published_cfg() | {"task_name": name}, published_cfg() | {"task": {"task_name": name}}):
        with pytest.raises(CheckpointError, match=f"unknown task '{name}'. Valid tasks: lift, can, square"):
            published_config(cfg, PATH)


def test_contradicting_names_of_the_task_are_refused() -> None:
    with pytest.raises(CheckpointError, match="of the tasks 'square_image' and 'can'"):
        published_config(published_cfg() | {"task": {"task_name": "can"}}, PATH)


def set_value(cfg: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    *parents, name = place.split(".")
    node = cfg
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value
    return cfg


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("n_latency_steps", 1, "n_latency_steps 1. Only 0 is supported"),
        ("past_action_visible", True, "past_action_visible True. Only False"),
        ("task.env_runner.n_latency_steps", 2, "n_latency_steps 2. Only 0"),
        ("task.abs_action", True, "task.abs_action for actions of 7 values, True. Only False"),
        ("policy.shape_meta.action.shape", [8], "actions of 8 values. Valid: 7 (delta) and 10 (absolute)"),
        ("policy.obs_encoder_group_norm", False, "BatchNorm"),
        ("policy.eval_fixed_crop", False, "crops images at random"),
        ("policy.use_depth", True, "policy setting use_depth True, which is not supported"),
        ("policy.eta", 0.5, "policy setting eta 0.5"),
        ("policy.horizon", "${horizon}", "cfg.policy.horizon is '${horizon}', which was not resolved"),
        ("policy.crop_shape", [100, 100], "crop_shape"),
        ("policy.noise_scheduler.thresholding", True, "noise scheduler's thresholding True. Only False"),
        ("policy.noise_scheduler.clip_sample_range", 3.0, "noise scheduler's clip_sample_range 3.0. Only 1.0"),
        ("policy.noise_scheduler.trained_betas", [0.1], "noise scheduler's trained_betas"),
        ("policy.noise_scheduler.lambda_min", -5, "unknown setting lambda_min"),
        ("policy.noise_scheduler._target_", "x.EulerDiscreteScheduler", "noise scheduler 'EulerDiscreteScheduler'"),
    ],
)
def test_settings_that_are_not_supported_are_refused(
    place: str, value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = set_value(published_cfg(), place, value)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_published(save_ckpt(tmp_path / "m.ckpt", cfg, state_dict(CONFIG), monkeypatch))


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (shape_meta(size=128)["obs"], "observes agentview_image as rgb of shape [3, 128, 128]"),
        (shape_meta(CAMERAS[:1] + tuple(LOW_DIM))["obs"], "does not observe robot0_eye_in_hand_image"),
        (shape_meta()["obs"] | {"object": {"shape": [14]}}, "observes object, which policies of 'square' do not"),
        (shape_meta()["obs"] | {"robot0_eef_pos": {"shape": [2]}}, "robot0_eef_pos as low_dim of shape [2]"),
        (shape_meta()["obs"] | {"robot0_eef_pos": {"shape": [3], "horizon": 3}}, "robot0_eef_pos.horizon 3"),
        (shape_meta()["obs"] | {"robot0_eef_quat": {"shape": [4], "rotation_rep": "rotation_6d"}}, "rotation_rep"),
    ],
)
def test_other_observations_are_refused(obs: dict[str, Any], message: str) -> None:
    cfg = published_cfg(shape_meta={"obs": obs, "action": {"shape": [7]}})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        feature_order(cfg, published_config(cfg, PATH), PATH)


def test_observations_of_low_dim_policies_are_checked() -> None:
    cfg = low_dim_cfg((*OBS_KEYS, "robot0_joint_pos"))
    config = published_config(cfg, PATH)
    with pytest.raises(CheckpointError, match="observes robot0_joint_pos, which policies of 'can' do not"):
        feature_order(cfg, config, PATH)
    with pytest.raises(CheckpointError, match="observes a key twice: object, .*, object"):
        feature_order(low_dim_cfg((*OBS_KEYS, "object")), config, PATH)
    with pytest.raises(CheckpointError, match="task.obs_keys is .*, but task.env_runner.obs_keys is object"):
        feature_order(set_value(low_dim_cfg(), "task.env_runner.obs_keys", ["object"]), config, PATH)
    with pytest.raises(CheckpointError, match="policy.n_obs_steps is 2, but policy.model.n_obs_steps is 3"):
        published_config(set_value(low_dim_cfg(), "policy.model.n_obs_steps", 3), PATH)


def test_defaults_are_those_of_the_published_classes() -> None:
    """Not those of this project, which are the settings of the published experiments."""
    cfg = published_cfg(noise_scheduler={"_target_": "x.DDIMScheduler"})
    del cfg["policy"]["num_inference_steps"]
    config = published_config(cfg, PATH)
    assert (config.num_train_timesteps, config.num_inference_steps, config.beta_schedule) == (1000, 1000, "linear")
    cfg = low_dim_cfg(model={"n_layer": 2, "n_emb": 48})
    assert published_config(cfg, PATH).n_head == 12
    del cfg["policy"]["horizon"]
    with pytest.raises(KeyError, match="horizon"):
        published_config(cfg, PATH)


def test_attention_is_causal_if_the_weights_have_a_mask() -> None:
    cfg = low_dim_cfg(model={"n_layer": 2, "n_emb": 32, "n_head": 4})
    names = ["model._dummy_variable", "model.cond_obs_emb.weight"]
    assert published_config(cfg, PATH, [*names, "model.mask"]).causal_attn
    assert not published_config(cfg, PATH, names).causal_attn
    with pytest.raises(CheckpointError, match="has causal_attn True, but its weights have no mask"):
        published_config(low_dim_cfg(), PATH, names)


def test_what_a_checkpoint_does_not_say_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = published_cfg(TARGET)
    del cfg["policy"]["eval_fixed_crop"], cfg["policy"]["shape_meta"]["obs"]
    path = save_ckpt(tmp_path / "m.ckpt", cfg, state_dict(CONFIG), monkeypatch)
    result = ok(ddp("import", path, "--out", tmp_path / "out"))
    assert "Assumed: eval_fixed_crop True; shape_meta.obs agentview_image, robot0_eye" in result.stderr.replace(
        "\n", " "
    )


def test_the_weights_are_those_that_the_published_evaluation_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = state_dict(CONFIG)
    ema = {name: weight + 1 for name, weight in raw.items()}

    def head_bias(cfg: dict[str, Any], **state_dicts: dict[str, Tensor]) -> tuple[Tensor, object]:
        path = save_ckpt(tmp_path / "m.ckpt", cfg, {}, monkeypatch, state_dicts=state_dicts)
        policy, meta = load_published(path)
        return policy.denoiser.head.bias, meta.get("assumed")

    no_ema = published_cfg() | {"training": {"use_ema": False}}
    for (bias, assumed), expected in (
        (head_bias(published_cfg(), model=raw, ema_model=ema), ema),
        (head_bias(no_ema, model=raw, ema_model=ema), raw),
    ):
        assert torch.equal(bias, expected["model.head.bias"])
        assert assumed is None
    bias, assumed = head_bias(published_cfg(), model=raw)
    assert torch.equal(bias, raw["model.head.bias"])
    assert assumed == ["model for the missing EMA weights (ema_model)"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("normalizer.params_dict.agentview_image.scale", torch.ones(1), "normalizes agentview_image with scale 1"),
        ("model.head.bias", torch.full((7,), torch.nan), "1 published weights are not finite.*denoiser.head.bias"),
        ("obs_encoder.obs_nets.agentview_image.nets.0.nets.1.running_mean", torch.zeros(64), "BatchNorm"),
    ],
)
def test_other_weights_are_refused(
    name: str, value: Tensor, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_ckpt(tmp_path / "m.ckpt", published_cfg(), state_dict(CONFIG) | {name: value}, monkeypatch)
    with pytest.raises(CheckpointError, match=message):
        load_published(path)


def test_the_size_of_a_policy_is_checked_before_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These would take 48 GB and 2 GB."""
    for settings, message in (
        ({"n_emb": 4096, "n_layer": 64}, r"no 'model\.decoder\.layers\.63\.linear1\.weight'"),
        ({"n_emb": 4096}, r"layers\.1\.linear1\.weight has shape \(128, 32\), expected \(16384, 4096\)"),
    ):
        cfg = published_cfg(**settings)
        with pytest.raises(CheckpointError, match=message):
            load_published(save_ckpt(tmp_path / "m.ckpt", cfg, state_dict(CONFIG), monkeypatch))


def test_a_refused_checkpoint_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_ckpt(tmp_path / "m.ckpt", published_cfg() | {"task_name": "square_d2"}, {}, monkeypatch)
    assert "unknown task 'square_d2'" in refused(ddp("import", path, "--out", tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["m.ckpt"]


ARM = ("eef_pos", "eef_quat", "gripper_qpos")
TRANSPORT = [
    key
    for i in (0, 1)
    for key in (f"shouldercamera{i}_image", f"robot{i}_eye_in_hand_image", *(f"robot{i}_{key}" for key in ARM))
]
TOOL_HANG = ["sideview_image", "robot0_eye_in_hand_image", *(f"robot0_{key}" for key in ARM)]


@pytest.mark.parametrize(
    ("name", "order", "crop", "actions"),
    [
        ("transport", TRANSPORT, 76, "absolute"),
        ("transport", TRANSPORT, 76, "delta"),
        ("tool_hang", TOOL_HANG, 216, "absolute"),
    ],
)
def test_checkpoints_of_two_arms_and_of_larger_images_are_imported(
    name: str, order: list[str], crop: int, actions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the published task files, where the keys of both arms alternate."""
    task = get_task(name)
    config = PolicyConfig(task=name, actions=actions, crop_shape=(crop, crop), n_layer=1, n_emb=16, n_head=2)
    cameras = {key: {"shape": [3, *camera.shape[:2]], "type": "rgb"} for key, camera in task.schema.cameras.items()}
    shapes = cameras | {key: {"shape": [width]} for key, width in task.low_dim.items()}
    assert sorted(order) == sorted(shapes)
    width = sum(part.width for part in task.action_parts(actions))
    meta = {"obs": {key: shapes[key] for key in order}, "action": {"shape": [width]}}
    policy_cfg = {"shape_meta": meta, "crop_shape": [crop, crop], "n_layer": 1, "n_emb": 16, "n_head": 2}
    suffix = "_image_abs" if actions == "absolute" else "_image"
    cfg = published_cfg(**policy_cfg) | {"task_name": name, "task": {"name": f"{name}{suffix}"}}
    policy, saved = load_published(save_ckpt(tmp_path / "m.ckpt", cfg, state_dict(config), monkeypatch))
    assert (policy.config.task, policy.config.crop_shape) == (task, (crop, crop))
    assert saved["action"] == task.describe_action(actions)
    obs = {
        key: torch.zeros(1, 2, 3, *camera.shape[:2], dtype=torch.uint8) for key, camera in task.schema.cameras.items()
    }
    obs |= {key: torch.zeros(1, 2, width) for key, width in task.low_dim.items()}
    assert policy.predict_action(obs, torch.Generator().manual_seed(0))["action"].shape == (1, 8, width)
