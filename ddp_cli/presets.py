"""The configuration of a run from a preset, a file and single settings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.image_size import AUTO, RECORDED_SIZE, with_image_size
from ddp_cli.policy_config import PolicyConfig, as_task
from ddp_cli.task_difference import describe_difference
from ddp_cli.tasks import RECORDED, Task
from ddp_cli.train_config import TrainConfig

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 3050.0},
    "laptop": {
        "minutes": 60.0,
        "batch_size": 128,
        "noise_samples": 2,
        "action_loss": 1.0,
        "object_loss": 1.0,
        "lr": 1.5e-3,
        "image_size": AUTO,
        "policy": {
            "encoder": "small",
            "fusion": 512,
            "n_layer": 2,
            "n_emb": 64,
            "p_drop_attn": 0.0,
            "prediction_type": "sample",
            "sampler": "ddim",
            "num_inference_steps": 10,
        },
    },
}
"""paper: the source document's values. laptop: a small policy for training on two CPU cores. Most of its compute goes
to the map from observations to actions (encoder, fusion, auxiliary losses), which runs once per observation; the
transformer, which runs once per denoising step, can be small."""

SIZES: dict[str, dict[str, Any]] = {
    "s": {},
    "m": {"lr": 1e-3, "policy": {"encoder_width": 2, "fusion": 1024, "n_layer": 4, "n_emb": 128}},
    "l": {"lr": 7e-4, "policy": {"encoder_width": 4, "fusion": 2048, "n_layer": 6, "n_emb": 256}},
}
"""Overrides of the laptop preset for more capacity. From images, a step of m and l takes 2.8 and 9 times as long as one
of s, from state 4 and 17 times."""

STATE_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"batch_size": 256, "epochs": 5000.0},
    "laptop": {"batch_size": 512, "noise_samples": 1, "precision": "fp32"},
}
"""Overrides for state policies. paper: the values of the published low-dimensional policies."""

RECORDED_SETTINGS: dict[str, Any] = {"val_ratio": 0.1, "crop_ratio": 0.9}
"""Of tasks without a simulator, in both presets: `ddp eval` measures a policy on the held-out episodes, and images may
have any size; 0.9 is the published share (76 of 84 pixels)."""

MAX_STEPS = 10_000  # beyond any horizon

LENGTHS = ("steps", "epochs", "minutes")

DERIVED = ("horizon_s", "image_size")
"""Settings that set others: the horizon in steps, and the cameras of the task."""


def default_preset(device_type: str, size: str | None = None) -> str:
    """The preset where none is named: `paper` on a GPU (`device_type` cuda) if no size is, otherwise `laptop`."""
    return "paper" if device_type == "cuda" and size is None else "laptop"


def train_config(
    task: str | Task,
    obs: str,
    preset: str,
    file: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    size: str | None = None,
) -> TrainConfig:
    """The preset in a `size`, overridden by a nested `file`, overridden by flat `settings` ({"n_emb": 128}).

    A preset's object loss is dropped where the task defines no object; without a simulator, actions are as recorded
    and RECORDED_SETTINGS apply.
    ConfigError for unknown keys and invalid values.
    """
    file, settings = _flatten(file or {}), settings or {}
    sized_preset = _sized(preset, size, file)
    flat: dict[str, Any] = {"task": as_task(task), "obs": obs, "preset": preset}
    state = STATE_PRESETS.get(preset, {}) if obs == "state" else {}
    without_object = {} if flat["task"].object_dim else {"object_loss": 0.0}
    recorded = {"actions": RECORDED} if RECORDED in flat["task"].conventions else {}
    recorded |= {} if flat["task"].simulator else RECORDED_SETTINGS
    for layer in (sized_preset | without_object | recorded, state, file, settings):
        values = _flatten(layer)
        for key in ("task", "obs", "preset"):
            _check_same(key, values.get(key, flat[key]), flat[key])
        if any(values.get(k) for k in LENGTHS):  # a later length replaces an earlier one
            flat = {k: v for k, v in flat.items() if k not in LENGTHS}
        if values.get("crop_shape"):  # replaces the ratio of an earlier layer
            flat.pop("crop_ratio", None)
        if "horizon" in values:
            flat.pop("horizon_s", None)
        flat |= values
    flat = _in_steps(flat)
    image_size = flat.pop("image_size", RECORDED_SIZE)
    overrides = file | settings
    if obs == "state" and "image_size" in overrides:
        raise ConfigError(
            f"image_size = {image_size!r}: a policy from state sees no images.", "Leave it out, or use --obs image."
        )
    _check_have_effect(flat, overrides, settings)
    # The task of a file, that of an earlier run, says the size of its images, unless another one is asked for.
    if obs == "image" and ("image_size" in overrides or "task" not in overrides):
        flat["task"] = _with_image_size(as_task(task), image_size)
    policy = {k: v for k, v in flat.items() if k in PolicyConfig.model_fields}
    training = {k: v for k, v in flat.items() if k not in policy}
    valid = sorted({*TrainConfig.model_fields, *PolicyConfig.model_fields, *DERIVED} - {"policy"})
    for key in training:
        if key not in valid:
            raise UnknownNameError("setting", key, valid)
    return TrainConfig(policy=PolicyConfig(**policy), **training)


def _check_have_effect(flat: dict[str, Any], overrides: dict[str, Any], settings: dict[str, Any]) -> None:
    """ConfigError if one of `overrides`, of which `settings` are the last, has no effect beside the others, `flat`."""
    for pair in (("crop_shape", "crop_ratio"), ("horizon", "horizon_s")):
        if all(settings.get(key) for key in pair):
            raise ConfigError(f"{pair[0]} and {pair[1]} are two ways to set the same.", "Leave one of them out.")
    fields = PolicyConfig.model_fields
    if flat.get("beta_schedule", fields["beta_schedule"].default) == "squaredcos_cap_v2":
        for key in ("beta_start", "beta_end"):
            if overrides.get(key, fields[key].default) != fields[key].default:
                raise ConfigError(
                    f"{key} = {overrides[key]!r} has no effect on the schedule squaredcos_cap_v2.",
                    "Leave it out, or add --set beta_schedule=linear.",
                )
    if overrides.get("shared_scale") and flat["obs"] == "image":
        raise ConfigError("shared_scale = True: a policy from images has no shared scale.", "Use --obs state.")


def _sized(preset: str, size: str | None, file: dict[str, Any]) -> dict[str, Any]:
    """The preset with the networks of `size`. ConfigError if the flat `file` sets them, too."""
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    if size is None:
        return _flatten(PRESETS[preset])
    if size not in SIZES:
        raise UnknownNameError("size", size, SIZES)
    if preset != "laptop":
        raise ConfigError(f"size {size}: the preset {preset} has one size.", "Use the preset laptop, or set no size.")
    for key in sorted(_flatten(SIZES[size]).keys() & file.keys()):
        raise ConfigError(f"size {size} sets {key}, and so does the file ({file[key]}).", "Leave one of them out.")
    return _flatten(PRESETS[preset]) | _flatten(SIZES[size])


def _flatten(layer: dict[str, Any]) -> dict[str, Any]:
    """`layer` with the settings of its `policy` on the top level, and its task parsed."""
    policy = layer.get("policy", {})
    if not isinstance(policy, dict):
        raise ConfigError(f"policy = {policy!r}: expected an object.", "Give its settings one by one.")
    values = {k: v for k, v in layer.items() if k != "policy"} | policy
    return values | {"task": as_task(values["task"])} if "task" in values else values


def _in_steps(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with `horizon` instead of `horizon_s`, in seconds. As in the published policy (10, 2 and 8 steps), all
    predicted actions after the observations are executed unless `n_action_steps` says otherwise.
    """
    if "horizon_s" not in values:
        return values
    seconds, rate = values["horizon_s"], values["task"].schema.rate
    n_obs_steps = values.get("n_obs_steps", PolicyConfig.model_fields["n_obs_steps"].default)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds * rate < MAX_STEPS:
        raise ConfigError(f"horizon_s = {seconds!r}: expected seconds, above 0.", "For example --set horizon_s=0.8.")
    horizon = max(n_obs_steps + 1, round(seconds * rate))
    rest = {key: value for key, value in values.items() if key != "horizon_s"}
    return {"n_action_steps": horizon - n_obs_steps, **rest, "horizon": horizon}


def _with_image_size(task: Task, size: Any) -> Task:
    """`task` with the images that a policy sees. A simulator renders them in the size that the task says."""
    if not isinstance(size, str):
        raise ConfigError(f"image_size = {size!r}: expected a size.", "For example --set image_size=96x128.")
    if not task.simulator:
        return replace(task, schema=with_image_size(task.schema, size))
    if size not in (AUTO, RECORDED_SIZE):
        raise ConfigError(
            f"image_size {size}: the images of the task '{task.name}' are rendered in the size that the task says.",
            "Leave it out, or describe a task with other images in a file.",
        )
    return task


def _check_same(key: str, value: Any, expected: Any) -> None:
    """ConfigError if a file or setting contradicts the value `expected` of `--key`."""
    hint = f"Use --{key} to choose it."
    if key == "task":
        # The file may be of a run whose images were resized.
        differences = describe_difference(_as_recorded(value), _as_recorded(expected))
        details = f": {differences}" if value.name == expected.name else ""
        if differences:
            raise ConfigError(f"task = '{value.name}' contradicts '{expected.name}'{details}.", hint)
    elif value != expected:
        raise ConfigError(f"{key} = {value!r} contradicts {expected!r}.", hint)


def _as_recorded(task: Task) -> Task:
    """`task` with images of the size of the recording."""
    cameras = {k: camera.resized(*camera.recorded_shape[:2]) for k, camera in task.schema.cameras.items()}
    return replace(task, schema=task.schema.model_copy(update={"cameras": cameras}))


def parse_settings(pairs: list[str], option: str = "--set") -> dict[str, Any]:
    """`["n_emb=128", "betas=[0.9,0.95]"]`, the values of `option` -> {"n_emb": 128, ...}. Values are JSON, or else
    text.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"cannot parse the setting '{pair}'.", f"Write it as {option} key=value.")
        try:
            settings[key.strip()] = json.loads(value)
        except ValueError:
            settings[key.strip()] = value
    return settings
