from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import DOOR

from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.presets import default_preset, parse_settings, train_config
from ddp_cli.schema import ActionPart, Camera, Schema, Vector
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import Task, get_task
from ddp_cli.train_config import TrainConfig


def test_paper_preset_has_the_values_of_the_source_document() -> None:
    config = train_config("square", "image", "paper")
    p = config.policy
    assert (p.horizon, p.n_obs_steps, p.n_action_steps) == (10, 2, 8)
    assert (p.n_layer, p.n_head, p.n_emb, p.p_drop_emb, p.p_drop_attn) == (8, 4, 256, 0.0, 0.3)
    assert (p.beta_start, p.beta_end, p.beta_schedule) == (0.0001, 0.02, "squaredcos_cap_v2")
    assert (p.sampler, p.num_inference_steps, p.prediction_type, p.crop_shape) == ("ddpm", 100, "epsilon", (76, 76))
    assert (config.batch_size, config.lr, config.betas) == (64, 1e-4, (0.9, 0.95))
    assert (config.transformer_weight_decay, config.obs_encoder_weight_decay) == (1e-3, 1e-6)
    assert (config.ema_inv_gamma, config.ema_power, config.ema_max_value) == (1.0, 0.75, 0.9999)
    assert (config.noise_samples, config.action_loss, p.encoder) == (1, 0.0, "resnet18")


def test_paper_preset_from_state_is_the_published_low_dim_policy() -> None:
    config = train_config("square", "state", "paper")
    assert (config.batch_size, config.epochs, config.transformer_weight_decay) == (256, 5000, 1e-3)
    assert config.policy.obs_as_cond


def test_settings_override_file_overrides_preset() -> None:
    config = train_config("lift", "state", "laptop", {"policy": {"n_emb": 64}, "lr": 0.1}, {"lr": 0.2})
    assert (config.policy.n_emb, config.lr, config.policy.obs) == (64, 0.2, "state")


def test_a_later_length_replaces_that_of_the_preset() -> None:
    config = train_config("lift", "image", "laptop", None, {"steps": 7})
    assert (config.steps, config.epochs, config.minutes) == (7, 0, 0)


def test_json_round_trip() -> None:
    config = train_config("can", "image", "laptop")
    values = config.model_dump(mode="json")
    assert TrainConfig(policy=PolicyConfig(**values.pop("policy")), **values) == config


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"n_embb": 64}, ["n_embb", "did you mean 'n_emb'", "batch_size"]),
        ({"n_emb": 63}, ["n_emb 63", "n_head 4"]),
        ({"n_emb": "wide"}, ["n_emb", "'wide'"]),
        ({"n_obs_steps": 11}, ["n_obs_steps 11", "horizon 10"]),
        ({"n_action_steps": 10}, ["n_action_steps 10", "= 9"]),
        ({"lr": -1}, ["lr", "-1"]),
        ({"p_drop_attn": 1.0}, ["p_drop_attn", "1.0"]),
        ({"crop_shape": [10, 10]}, ["crop_shape", "16"]),
        ({"num_inference_steps": 101}, ["101", "100"]),
        ({"steps": 5, "minutes": 5}, ["only one of"]),
        ({"sampler": "euler"}, ["sampler", "'euler'", "ddpm"]),
        ({"sampler": "ddmp"}, ["unknown sampler 'ddmp', did you mean 'ddpm'", "ddpm, ddim, dpm"]),
        ({"precision": "fp64"}, ["precision 'fp64'", "auto, fp32, bf16"]),
        ({"lr": float("nan")}, ["lr", "nan"]),
        ({"policy": 3}, ["policy = 3"]),
        ({"encoder": "resnet18", "encoder_width": 2}, ["encoder_width 2 needs encoder small"]),
        ({"task": "can"}, ["'can' contradicts 'square'", "--task"]),
        ({"obs": "state"}, ["--obs"]),
    ],
)
def test_errors_name_the_setting_and_what_would_be_valid(settings: dict, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as e:
        train_config("square", "image", "laptop", None, settings)
    for fragment in fragments:
        assert fragment in str(e.value)


def test_larger_sizes_change_networks_only() -> None:
    sizes = [train_config("square", "image", "laptop", None, None, size) for size in ("s", "m", "l")]
    assert sizes[0] == train_config("square", "image", "laptop")
    widths = [(c.policy.encoder_width, c.policy.fusion, c.policy.n_layer, c.policy.n_emb) for c in sizes]
    assert widths == sorted(widths)
    assert len(set(widths)) == 3
    network = {"encoder_width": 1, "fusion": 512, "n_layer": 2, "n_emb": 64, "lr": 1.5e-3}
    for larger in sizes[1:]:
        values = larger.model_dump(mode="json")
        assert train_config("square", "image", "laptop", values, network) == sizes[0]


def test_a_size_may_be_overridden_and_belongs_to_the_laptop_preset() -> None:
    assert train_config("lift", "state", "laptop", None, {"n_emb": 32}, "m").policy.n_emb == 32
    assert train_config("lift", "state", "laptop", None, None, "m").batch_size == 512
    with pytest.raises(ConfigError, match="size m: the preset paper has one size"):
        train_config("lift", "image", "paper", None, None, "m")
    with pytest.raises(ConfigError, match=r"size m sets fusion, and so does the file \(512\)"):
        train_config("lift", "image", "laptop", {"policy": {"fusion": 512}}, None, "m")
    with pytest.raises(UnknownNameError, match="unknown size 'xl'.*s, m, l"):
        train_config("lift", "image", "laptop", None, None, "xl")
    assert (default_preset("cuda"), default_preset("cuda", "m"), default_preset("cpu")) == ("paper", "laptop", "laptop")


def test_unknown_preset_is_reported_with_a_close_match() -> None:
    with pytest.raises(UnknownNameError, match="unknown preset 'papr', did you mean 'paper'.*paper, laptop"):
        train_config("lift", "image", "papr")


def test_unknown_task_is_reported_with_a_close_match() -> None:
    with pytest.raises(ConfigError, match="did you mean 'square'.*lift, can, square"):
        PolicyConfig(task="sqare")


def test_settings_are_json_or_text() -> None:
    assert parse_settings(["n_emb=128", "betas=[0.9, 0.99]", "encoder=small"]) == {
        "n_emb": 128,
        "betas": [0.9, 0.99],
        "encoder": "small",
    }
    with pytest.raises(ConfigError, match="key=value"):
        parse_settings(["n_emb"])


def test_a_built_in_task_is_saved_by_name() -> None:
    policy = PolicyConfig(task="lift")
    assert policy.model_dump(mode="json")["task"] == policy.model_dump()["task"] == "lift"
    assert policy == PolicyConfig(task=get_task("lift"))
    assert PolicyConfig().model_dump(mode="json")["task"] == "square"


def test_a_described_task_is_saved_in_full() -> None:
    policy = PolicyConfig(task=task_from_json(DOOR), obs="state")
    text = json.dumps(policy.model_dump(mode="json"))
    again = PolicyConfig(**json.loads(text))
    assert again == policy
    assert json.dumps(again.model_dump(mode="json")) == text
    assert again.low_dim == {"object": 7, "robot0_eef_pos": 3, "robot0_joint_vel": 7}
    assert again.with_sampler("ddim", 5).task == policy.task
    assert PolicyConfig(task=DOOR).image_keys == ["frontview_image"]
    with pytest.raises(ConfigError, match="horizon = -1"):
        PolicyConfig(task=DOOR | {"horizon": -1})


@pytest.mark.parametrize(
    ("stored", "sampler", "steps"),
    [(("ddim", 10), "dpm", 10), (("ddim", 10), "ddpm", 100), (("ddim", 10), None, 10), (("ddpm", 50), "ddpm", 50),
     (("ddpm", 100), "ddim", 100)],
)  # fmt: skip
def test_another_sampler_keeps_the_number_of_steps_unless_it_is_ddpm(
    stored: tuple[str, int], sampler: str | None, steps: int
) -> None:
    config = PolicyConfig(sampler=stored[0], num_inference_steps=stored[1]).with_sampler(sampler, None)
    assert (config.sampler, config.num_inference_steps) == (sampler or stored[0], steps)


def test_state_policies_and_object_loss_need_a_task_with_an_object() -> None:
    task = task_from_json({"name": "door", "env_name": "Door"})
    with pytest.raises(ConfigError, match="'door' defines no object.*--obs image"):
        train_config(task, "state", "laptop")
    assert train_config(task, "image", "laptop").object_loss == 0
    assert train_config(task_from_json(DOOR), "image", "laptop").object_loss == 1
    with pytest.raises(ConfigError, match="object_loss 0.5: the task 'door' defines no object"):
        train_config(task, "image", "laptop", None, {"object_loss": 0.5})


def test_the_configuration_of_a_run_can_be_reused() -> None:
    for task in ("lift", task_from_json(DOOR)):
        config = train_config(task, "image", "laptop")
        assert train_config(task, "image", "laptop", config.model_dump(mode="json")) == config


def test_a_contradicting_task_is_rejected() -> None:
    other = {"policy": {"task": DOOR | {"horizon": 99}}}
    with pytest.raises(ConfigError, match="task = 'door' contradicts 'door': horizon 99 instead of 12"):
        train_config(task_from_json(DOOR), "image", "laptop", other)
    with pytest.raises(ConfigError, match="task = 'door' contradicts 'lift'. Use --task"):
        train_config("lift", "image", "laptop", other)


def test_a_value_that_is_too_short_is_named() -> None:
    with pytest.raises(ConfigError, match=r"betas = \[0.9\]"):
        train_config("lift", "state", "laptop", None, {"betas": [0.9]})


def test_cache_dir_does_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may be resumed from another folder, and shells leave `--set cache_dir=~/x` as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for value, expected in (("caches", f"{tmp_path}/caches"), ("~/x", "/home/me/x"), ("/tmp/x", "/tmp/x"), ("", "")):
        settings = parse_settings([f"cache_dir={value}"])
        assert train_config("lift", "image", "paper", None, settings).cache_dir == expected


def recorded_task(rate: float) -> Task:
    schema = Schema(rate=rate, vectors={"q": Vector(width=3)}, action=(ActionPart(name="action", width=3),))
    return Task("arm", schema)


@pytest.mark.parametrize(
    ("rate", "settings", "steps"),
    [
        (10, {"horizon_s": 1}, (10, 8)),
        (50, {"horizon_s": 0.8}, (40, 38)),
        (50, {"horizon_s": 0.8, "n_action_steps": 20}, (40, 20)),
        (50, {"horizon_s": 0.8, "n_obs_steps": 4}, (40, 36)),
        (10, {"horizon_s": 0.01}, (3, 1)),
    ],
)
def test_a_horizon_in_seconds(rate: float, settings: dict, steps: tuple[int, int]) -> None:
    policy = train_config(recorded_task(rate), "state", "laptop", None, settings).policy
    assert (policy.horizon, policy.n_action_steps) == steps


def test_a_horizon_in_seconds_keeps_the_executed_actions_of_a_file() -> None:
    file = {"policy": {"n_action_steps": 3}, "horizon_s": 0.5}
    policy = train_config(recorded_task(10), "state", "laptop", file, {"horizon_s": 0.8}).policy
    assert (policy.horizon, policy.n_action_steps) == (8, 3)
    policy = train_config(recorded_task(10), "state", "laptop", {"horizon_s": 0.5}, {"horizon": 12}).policy
    assert (policy.horizon, policy.n_action_steps) == (12, 8)


@pytest.mark.parametrize(
    ("obs", "settings", "message"),
    [
        ("state", {"horizon_s": 0.8, "horizon": 10}, "horizon and horizon_s are two ways"),
        ("image", {"crop_shape": [16, 16], "crop_ratio": 0.9}, "crop_shape and crop_ratio are two ways"),
        ("state", {"beta_end": 0.5}, "beta_end = 0.5 has no effect on the schedule squaredcos_cap_v2"),
        ("image", {"shared_scale": True}, "a policy from images has no shared scale"),
        ("state", {"lr": True}, "lr = True: expected a number"),
        ("state", {"n_layer": True}, "n_layer = True: expected a number"),
        ("state", {"horizon_s": True}, "horizon_s = True: expected seconds"),
    ],
)
def test_settings_without_an_effect_are_refused(obs: str, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config("lift", obs, "laptop", None, settings)


def test_settings_that_have_an_effect_are_accepted() -> None:
    betas = {"beta_schedule": "linear", "beta_end": 0.5}
    assert train_config("lift", "state", "laptop", None, betas).policy.beta_end == 0.5
    config = train_config("lift", "image", "laptop", None, {"crop_shape": [60, 60]})
    file = config.model_dump(mode="json")
    assert train_config("lift", "image", "laptop", file, {"seed": 3}).policy == config.policy  # of an earlier run


@pytest.mark.parametrize("value", [0, -1, "x", 1e9])
def test_an_invalid_horizon_in_seconds_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match="horizon_s = .*expected seconds"):
        train_config(recorded_task(10), "state", "laptop", None, {"horizon_s": value})


def test_tasks_without_a_simulator_crop_a_share_of_images_of_any_size() -> None:
    task = recorded_task(10)
    task.schema.cameras["top"] = Camera(height=96, width=60)
    assert train_config(task, "state", "laptop").policy.task == task
    with pytest.raises(ConfigError, match="image_size = '32x40': a policy from state sees no images"):
        train_config(task, "state", "laptop", None, {"image_size": "32x40"})
    policy = train_config(task, "image", "paper").policy
    assert policy.crop("top") == (86, 54)
    assert train_config(task, "image", "paper").val_ratio == 0.1
    fixed = train_config(task, "image", "paper", None, {"crop_shape": [50, 40]}).policy
    assert fixed.crop("top") == (50, 40)
