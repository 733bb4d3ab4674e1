"""Imports checkpoints of the published diffusion policy code.

Its state dicts contain `obs_encoder.obs_nets.<camera>` (the robomimic encoder), `model` (the transformer) and
`normalizer.params_dict.<key>` (scale and offset). Buffers that follow from the architecture are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_cli.config import PolicyConfig
from ddp_cli.core.checkpoint import Meta
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.safe_unpickle import read_torch_zip, to_plain_containers
from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.tasks import ACTION_DIM, ACTIONS, IMAGE_SIZE, TASKS

IGNORED_SUFFIXES = ("_dummy_variable", "mask", "memory_mask", "pos_x", "pos_y")
"""Last parts of the names of buffers that are not weights."""

CONFIG_HINT = "Give the configuration that it was trained with."
FILE_HINT = "Give a .ckpt saved by the published code."

POLICY_CLASSES = {
    "DiffusionTransformerHybridImagePolicy": "image",
    "DiffusionTransformerLowdimPolicy": "state",
}
"""Published classes that can be imported -> their kind of observations."""


def import_published(state_dict: Mapping[str, Tensor], config: PolicyConfig) -> DiffusionPolicy:
    """The policy of `config` with the weights of a published state dict, in eval mode.

    CheckpointError if weights are missing, unused or of other shapes than those of `config`.
    """
    published = _PublishedWeights(state_dict)
    policy = DiffusionPolicy(config)
    weights: dict[str, Tensor] = {}
    for key in policy.encoders:
        weights |= _image_encoder_weights(published, policy, key)
    weights |= _normalizer_weights(published, policy)
    for name in policy.denoiser.state_dict():
        weights[f"denoiser.{name}"] = _denoiser_weight(published, name, config)
    published.check_all_used()
    expected = {name: tuple(weight.shape) for name, weight in policy.state_dict().items()}
    mismatched = [name for name, shape in expected.items() if weights[name].shape != shape]
    if mismatched:
        name = mismatched[0]
        raise CheckpointError(
            f"{len(mismatched)} published weights do not fit the configuration: "
            f"{name} has shape {tuple(weights[name].shape)}, expected {expected[name]}.",
            CONFIG_HINT,
        )
    policy.load_state_dict(weights)
    return policy.eval()


class _PublishedWeights:
    """A state dict that tracks which of its weights were used."""

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self.weights = dict(state_dict)
        self.used: set[str] = set()

    def get(self, *names: str) -> Tensor:
        """The weight under the first of `names` that exists; all of them count as used."""
        existing = [n for n in names if n in self.weights]
        if not existing:
            raise CheckpointError(
                f"the published checkpoint has no '{names[0]}'.", "Check that it belongs to this configuration."
            )
        self.used.update(existing)
        return self.weights[existing[0]]

    def check_all_used(self) -> None:
        def is_ignored(name: str) -> bool:
            parts = name.split(".")
            return parts[-1] in IGNORED_SUFFIXES or "input_stats" in parts or parts[0] == "mask_generator"

        unused = sorted(n for n in self.weights if n not in self.used and not is_ignored(n))
        if unused:
            raise CheckpointError(
                f"{len(unused)} published weights are not part of the configuration, the first is '{unused[0]}'.",
                CONFIG_HINT,
            )


def _image_encoder_weights(published: _PublishedWeights, policy: DiffusionPolicy, key: str) -> dict[str, Tensor]:
    prefix = f"obs_encoder.obs_nets.{key}."
    weights = {}
    for name in policy.encoders[key].state_dict():
        module, _, rest = name.partition(".")
        # The published state dict contains backbone and pool twice, by name and by position.
        aliases = {
            "backbone": (f"backbone.nets.{rest}", f"nets.0.nets.{rest}"),
            "pool": (f"pool.nets.{rest.removeprefix('keypoints.')}", f"nets.1.nets.{rest.removeprefix('keypoints.')}"),
            "linear": (f"nets.3.{rest}",),
        }[module]
        weights[f"encoders.{key}.{name}"] = published.get(*(prefix + alias for alias in aliases))
    for name in (prefix + "pool.temperature", prefix + "nets.1.temperature"):
        temperature = published.weights.get(name, torch.ones(1))
        published.used.add(name)
        if not torch.allclose(temperature, torch.ones(1)):
            raise CheckpointError(f"{name} is {float(temperature):g}; only 1 is supported.", "Use another checkpoint.")
    return weights


def _normalizer_weights(published: _PublishedWeights, policy: DiffusionPolicy) -> dict[str, Tensor]:
    weights = {}
    config = policy.config
    for part in ("scale", "offset"):
        for key in config.image_keys:  # always 0..1 -> -1..1
            published.used.add(f"normalizer.params_dict.{key}.{part}")
        weights[f"normalizer.action_{part}"] = published.get(f"normalizer.params_dict.action.{part}")
        if config.obs == "state":  # one vector for all keys
            vector, widths = published.get(f"normalizer.params_dict.obs.{part}"), list(config.low_dim.values())
            if len(vector) != sum(widths):
                raise CheckpointError(
                    f"the published policy observes {len(vector)} values, "
                    f"the task '{config.task.name}' has {sum(widths)}.",
                    CONFIG_HINT,
                )
            values = vector.split(widths)
        else:
            values = tuple(published.get(f"normalizer.params_dict.{key}.{part}") for key in config.low_dim)
        weights |= {f"normalizer.{key}_{part}": value for key, value in zip(config.low_dim, values, strict=True)}
    return weights


def _denoiser_weight(published: _PublishedWeights, name: str, config: PolicyConfig) -> Tensor:
    parts = name.split(".")
    kind = parts[-1]
    if parts[0] == "layers":
        stack = "decoder" if config.time_as_cond else "encoder"
        return _layer_weight(published, f"model.{stack}.layers.{parts[1]}.", parts[2:], config.time_as_cond)
    if parts[:2] == ["encoder", "layers"]:
        return _layer_weight(published, f"model.encoder.layers.{parts[2]}.", parts[3:], decoder=False)
    if parts[:2] == ["encoder", "mlp"]:
        return published.get(f"model.encoder.{parts[2]}.{kind}")
    return published.get("model." + name.replace("cond_emb.", "cond_obs_emb."))


def _layer_weight(published: _PublishedWeights, prefix: str, parts: list[str], decoder: bool) -> Tensor:
    """A weight of a layer. `TransformerLayer` separates query from key and value; torch packs all three."""
    module, kind = parts[0], parts[-1]
    if module in ("self_attention", "cross_attention"):
        attention = prefix + ("self_attn" if module == "self_attention" else "multihead_attn")
        if parts[1] == "out":
            return published.get(f"{attention}.out_proj.{kind}")
        packed = published.get(f"{attention}.in_proj_{kind}")
        width = len(packed) // 3
        return packed[:width] if parts[1] == "query" else packed[width:]
    if module == "norm3" and not decoder:  # the norm of the feed-forward block, norm2 in torch's encoder layer
        module = "norm2"
    return published.get(f"{prefix}{module}.{kind}")


def load_published(path: Path) -> tuple[DiffusionPolicy, Meta]:
    """The policy in a published `.ckpt` (EMA weights if it has any, normalizer, configuration) and the metadata of a
    native checkpoint. No code from the file is executed.
    """
    payload = read_torch_zip(path)
    if not isinstance(payload, dict) or not isinstance(payload.get("state_dicts"), dict) or "cfg" not in payload:
        raise CheckpointError(f"'{path}' has no cfg and state_dicts.", FILE_HINT)
    try:
        config = published_config(to_plain_containers(payload["cfg"]), path)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, ConfigError) as e:
        raise CheckpointError(f"'{path}': its cfg cannot be read ({type(e).__name__}: {e}).", FILE_HINT) from e
    weights = payload["state_dicts"].get("ema_model") or payload["state_dicts"].get("model")
    if not isinstance(weights, dict):
        raise CheckpointError(f"'{path}' has no weights (state_dicts.ema_model or model).", "Use another checkpoint.")
    policy = import_published({k: v for k, v in weights.items() if isinstance(v, Tensor)}, config)
    # Published policies were trained on robosuite's own camera images: the render profile "full".
    return policy, {"published": path.name, "render": "full", "action": {**ACTIONS[config.actions]}}


def published_config(cfg: Any, path: Path) -> PolicyConfig:
    """The PolicyConfig for a published configuration (a resolved dictionary)."""
    policy = cfg["policy"]
    class_name = str(policy["_target_"]).rsplit(".", 1)[-1]
    task_name = str(cfg.get("task_name") or cfg["task"]["name"])
    if class_name not in POLICY_CLASSES:
        raise CheckpointError(
            f"'{path}' is a {class_name}, which is not supported.", f"Valid: {', '.join(POLICY_CLASSES)}."
        )
    task = next((name for name in TASKS if task_name.startswith(name)), None)
    if task is None:
        raise CheckpointError(f"'{path}' is of the unknown task '{task_name}'.", f"Valid tasks: {', '.join(TASKS)}.")
    model = policy.get("model") or {}
    values: dict[str, Any] = {"task": task, "obs": POLICY_CLASSES[class_name]}
    for source in (policy, model):
        values |= {k: v for k, v in source.items() if k in PolicyConfig.model_fields and v is not None}
    values |= _scheduler_settings(policy["noise_scheduler"]) | {"actions": _action_convention(cfg, path)}
    # Published defaults: no crop, and as many inference steps as training steps.
    values.setdefault("num_inference_steps", values["num_train_timesteps"])
    values.setdefault("crop_shape", (IMAGE_SIZE, IMAGE_SIZE) if "crop_shape" in policy else (76, 76))
    if values["obs"] == "state":
        values["obs_as_cond"] = bool(policy.get("obs_as_cond", True))
    return PolicyConfig(**values)


def _action_convention(cfg: dict[str, Any], path: Path) -> str:
    policy = cfg["policy"]
    shape_meta = policy.get("shape_meta") or cfg.get("shape_meta") or {}
    width = shape_meta["action"]["shape"][0] if "action" in shape_meta else policy.get("action_dim", ACTION_DIM)
    for name, convention in ACTIONS.items():
        if convention["dim"] == width:
            return name
    valid = " and ".join(f"{convention['dim']} ({name})" for name, convention in ACTIONS.items())
    raise CheckpointError(f"'{path}' has actions of {width} values.", f"Valid: {valid}.")


def _scheduler_settings(scheduler: dict[str, Any]) -> dict[str, Any]:
    class_name = str(scheduler.get("_target_", "")).rsplit(".", 1)[-1]
    samplers = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}
    if class_name not in samplers:
        raise CheckpointError(f"unknown noise scheduler '{class_name}'.", f"Valid: {', '.join(samplers)}.")
    for key, supported in (("variance_type", "fixed_small"), ("set_alpha_to_one", True), ("steps_offset", 0)):
        if scheduler.get(key, supported) != supported:
            raise CheckpointError(
                f"the noise scheduler has {key} {scheduler[key]!r}.", f"Only {supported!r} is supported."
            )
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "clip_sample", "prediction_type")
    values = {k: scheduler[k] for k in names if k in scheduler}
    spacing = scheduler.get("timestep_spacing", "leading")
    return values | {"sampler": samplers[class_name], "timestep_spacing": spacing}
