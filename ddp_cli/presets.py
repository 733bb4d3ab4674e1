"""From a preset, a file and single settings to the configuration of a run."""

from __future__ import annotations

import json
from typing import Any

from ddp_cli.config import PolicyConfig, TrainConfig, as_task
from ddp_cli.errors import ConfigError, close_match
from ddp_cli.tasks import Task, difference

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 3050.0},
    "laptop": {
        "minutes": 60.0,
        "batch_size": 128,
        "noise_samples": 2,
        "action_loss": 1.0,
        "object_loss": 1.0,
        "lr": 1.5e-3,
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
"""paper: the document's numbers. laptop: a small policy that learns on two CPU cores. What is there to learn is the
way from observations to actions, so that gets most of the arithmetic, once per observation: an encoder that is told
early what to look for (auxiliary losses), and fusion. The transformer, once per denoising step, can be small."""

STATE_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"batch_size": 256, "epochs": 5000.0},
    "laptop": {"batch_size": 512, "noise_samples": 1, "precision": "fp32"},
}
"""What differs for state policies. paper: the published numbers of the low-dimensional ones."""

LENGTHS = ("steps", "epochs", "minutes")


def train_config(
    task: str | Task, obs: str, preset: str, file: dict[str, Any] | None = None, settings: dict[str, Any] | None = None
) -> TrainConfig:
    """The preset, overridden by a nested `file`, overridden by flat `settings` ({"n_emb": 128}).

    A preset's object loss is left out where the task names no object. Raises ConfigError for keys that do
    not exist and values out of range, naming the valid ones.
    """
    if preset not in PRESETS:
        raise ConfigError(
            f"unknown preset '{preset}'{close_match(preset, PRESETS)}", f"Valid presets: {', '.join(PRESETS)}."
        )
    flat: dict[str, Any] = {"task": as_task(task), "obs": obs, "preset": preset}
    state = STATE_PRESETS.get(preset, {}) if obs == "state" else {}
    unhelped = {} if flat["task"].object else {"object_loss": 0.0}
    for layer in (PRESETS[preset] | unhelped, state, file or {}, settings or {}):
        nested = layer.get("policy", {})
        if not isinstance(nested, dict):
            raise ConfigError(f"policy = {nested!r}: expected an object.", "Name its settings one by one.")
        given = {k: v for k, v in layer.items() if k != "policy"} | nested
        if "task" in given:
            given["task"] = as_task(given["task"])
        for key in ("task", "obs", "preset"):
            contradiction = _contradiction(key, given.get(key, flat[key]), flat[key])
            if contradiction:
                raise ConfigError(contradiction, f"Use --{key} to choose it.")
        if any(given.get(k) for k in LENGTHS):  # a later length replaces an earlier one
            flat = {k: v for k, v in flat.items() if k not in LENGTHS}
        flat |= given
    policy = {k: v for k, v in flat.items() if k in PolicyConfig.model_fields}
    rest = {k: v for k, v in flat.items() if k not in policy}
    valid = [*TrainConfig.model_fields, *PolicyConfig.model_fields]
    for key in rest:
        if key not in TrainConfig.model_fields or key == "policy":
            raise ConfigError(
                f"unknown setting '{key}'{close_match(key, valid)}",
                f"Valid: {', '.join(sorted(k for k in valid if k != 'policy'))}.",
            )
    return TrainConfig(policy=PolicyConfig(**policy), **rest)


def _contradiction(key: str, given: Any, chosen: Any) -> str:
    """What is wrong, empty if nothing is."""
    if key != "task":
        return "" if given == chosen else f"{key} = {given!r} contradicts {chosen!r}."
    differs = difference(given, chosen)
    why = f": {differs}" if given.name == chosen.name else ""
    return f"task = '{given.name}' contradicts '{chosen.name}'{why}." if differs else ""


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["n_emb=128", "betas=[0.9,0.95]"]` -> {"n_emb": 128, ...}; values are JSON, or else text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"cannot read the setting '{pair}'.", "Write it as --set key=value.")
        try:
            settings[key.strip()] = json.loads(value)
        except ValueError:
            settings[key.strip()] = value
    return settings
