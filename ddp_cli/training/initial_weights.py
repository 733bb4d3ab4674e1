"""The weights of another checkpoint as the initial weights of a run (`ddp train --init-from`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ddp_cli.core.checkpoint import load_meta, load_weights
from ddp_cli.data.lint_source import dimension_names
from ddp_cli.errors import ConfigError
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.schema import OBJECT, ActionPart
from ddp_cli.tasks import Task
from ddp_cli.training.trainer import Trainer

SETTINGS_WITHOUT_WEIGHTS = {
    "task", "n_action_steps", "p_drop_emb", "p_drop_attn", "clip_sample", "sampler", "num_inference_steps",
    "timestep_spacing", "prefix_steps",
}  # fmt: skip
"""Settings of a policy that may differ from those that its weights were trained with. Of the task, the observations,
the actions and the rate are compared, and `n_action_steps` only where it is the length of the trajectory."""

RANGE_TOLERANCE = 0.05  # share of half the range by which actions may exceed it without a warning
PREFIX_EMBEDDING = "denoiser.prefix_emb"


def load_initial_weights(trainer: Trainer, checkpoint: Path) -> None:
    """Load the weights and the normalizer of `checkpoint`; ConfigError lists what does not fit: settings that change
    what the weights mean, and weights.
    """
    weights, expected = load_weights(checkpoint), trainer.policy.state_dict()
    if PREFIX_EMBEDDING in expected:  # initially zero: without effect in a policy that was trained without
        weights = {PREFIX_EMBEDDING: expected[PREFIX_EMBEDDING].cpu()} | weights
    checkpoint_config = PolicyConfig(**load_meta(checkpoint)["policy"])  # type: ignore[arg-type]
    # Where settings differ, so do weights, for that reason.
    differences = _compare_settings(checkpoint_config, trainer.config.policy) or _compare_weights(weights, expected)
    if differences:
        raise ConfigError(
            f"the weights of '{checkpoint}' do not fit, {len(differences)} difference{'s' * (len(differences) > 1)}: "
            f"{'; '.join(differences)}.",
            "Train the same architecture: use the settings in the checkpoint's config.json.",
        )
    trainer.policy.load_state_dict(weights)
    for shadow, parameter in zip(trainer.ema.shadow, trainer.policy.parameters(), strict=True):
        shadow.copy_(parameter.detach())


def describe_unreachable_actions(trainer: Trainer) -> str:
    """The recorded actions that the policy cannot predict, since its normalizer, that of another store, has a smaller
    range and the samples are clipped to it; empty if there are none. Values with another normalization than their range
    are not clipped to what was recorded.
    """
    config, normalizer = trainer.config.policy, trainer.policy.normalizer
    if not config.clip_sample:
        return ""
    actions = trainer.data.train.arrays["action"].to(trainer.device)
    is_range = torch.tensor([kind == "range" for kind in normalizer.columns["action"]], device=trainer.device)
    beyond = (normalizer.normalize("action", actions).abs() > 1.0 + RANGE_TOLERANCE) & is_range
    columns = beyond.any(0).nonzero().flatten().tolist()
    if not columns:
        return ""
    names = dimension_names(config.task.schema, config.action_parts)["action"]
    lows, highs = normalizer.bounds("action")
    column = int(beyond.sum(0).argmax())
    low, high = float(actions[:, column].min()), float(actions[:, column].max())
    return (
        f"{int(beyond.any(1).sum()):,} of {len(actions):,} recorded actions lie outside the range that the initial "
        f"policy can predict ({', '.join(names[i] for i in columns)}; {names[column]} is recorded from {low:g} to "
        f"{high:g}, predicted from {lows[column]:g} to {highs[column]:g})"
    )


def _compare_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """The names and shapes of `weights` that are not those of `expected`."""
    missing = [f"{name} is missing" for name in expected if name not in weights]
    unexpected = [f"{name} is not expected" for name in weights if name not in expected]
    other_shapes = [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(weight.shape)}"
        for name, weight in expected.items()
        if name in weights and weights[name].shape != weight.shape
    ]
    return missing + unexpected + other_shapes


def _compare_settings(config: PolicyConfig, expected: PolicyConfig) -> list[str]:
    """The settings of `config` that change what its weights mean and differ from those of `expected`."""
    ignored = set(SETTINGS_WITHOUT_WEIGHTS)
    if config.pred_action_steps_only and expected.pred_action_steps_only:
        ignored.remove("n_action_steps")
    if config.obs == expected.obs == "state":
        ignored |= {"encoder", "encoder_width", "crop_shape", "crop_ratio"}

    def settings(policy: PolicyConfig) -> dict[str, object]:
        values = {name: getattr(policy, name) for name in PolicyConfig.model_fields if name not in ignored}
        # In the order of the features.
        listed: dict[str, Mapping[str, object]] = {
            "cameras": {key: _describe_camera(policy.task, key) for key in policy.image_keys},
            "low_dim": {key: _describe_vector(policy.task, key) for key in policy.task.low_dim},
            "object": _object_parts(policy.task) if policy.obs == "state" else {},
            "action": {part.name: _describe_action(part) for part in policy.action_parts},
            "rate": {"Hz": policy.task.schema.rate},
        }
        return values | {name: _list_items(items) for name, items in listed.items()}

    actual_values, expected_values = settings(config), settings(expected)
    actual_names, expected_names = _value_names(config), _value_names(expected)
    return [
        f"{name} is {actual_values.get(name, 'absent')}, expected {expected_values.get(name, 'absent')}"
        for name in {**actual_values, **expected_values}
        if actual_values.get(name) != expected_values.get(name)
    ] + [
        f"the values of {key} are {', '.join(names)}, expected {', '.join(expected_names[key])}"
        for key, names in actual_names.items()
        if names != expected_names.get(key) and sorted(names) == sorted(expected_names.get(key, ()))
    ]


def _value_names(config: PolicyConfig) -> dict[str, tuple[str, ...]]:
    """Names of the values of the vectors and parts of an action that have any."""
    vectors = config.task.schema.vectors
    named = {key: vectors[key].names for key in config.low_dim}
    named |= {f"action {part.name}": part.names for part in config.action_parts}
    return {key: names for key, names in named.items() if names}


def _describe_vector(task: Task, key: str) -> str:
    vector = task.schema.vectors[key]
    return f"{vector.width}{'' if vector.normalization == 'range' else f', {vector.normalization}'}"


def _describe_action(part: ActionPart) -> str:
    rotation = "" if part.rotation == "none" else part.rotation
    normalization = "" if part.normalization == "range" else part.normalization
    return ", ".join(filter(None, [str(part.width), part.representation, rotation, part.unit, normalization]))


def _describe_camera(task: Task, key: str) -> str:
    """The camera of the simulator, if there is one, and the shape of its images."""
    shape = "x".join(map(str, task.schema.cameras[key].shape))
    return f"{task.simulator.cameras[key]}, {shape}" if task.simulator else shape


def _object_parts(task: Task) -> dict[str, int]:
    """Widths of the parts of the vector `object`."""
    return task.simulator.object if task.simulator else {OBJECT: task.object_dim} if task.object_dim else {}


def _list_items(items: Mapping[str, object]) -> str:
    return ", ".join(f"{key} ({value})" for key, value in items.items()) or "none"
