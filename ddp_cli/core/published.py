"""Checkpoints of the published diffusion policy code: their weights, under our names.

Their names: `obs_encoder.obs_nets.<camera>` (the robomimic encoder), `model` (the transformer) and
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
from ddp_cli.core.safe_unpickle import plain, read_checkpoint
from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.tasks import ACTION_DIM, ACTIONS, IMAGE_SIZE, TASKS

IGNORED = ("_dummy_variable", "mask", "memory_mask", "pos_x", "pos_y")
"""Last parts of names that hold no weights."""


def import_published(state_dict: Mapping[str, Tensor], config: PolicyConfig) -> DiffusionPolicy:
    """The policy of `config` with the weights of a published state dict, in eval mode.

    CheckpointError when weights are missing, left over, or of other shapes than `config` makes them.
    """
    theirs = _PublishedWeights(state_dict)
    policy = DiffusionPolicy(config)
    weights: dict[str, Tensor] = {}
    for key in policy.encoders:
        weights |= _camera(theirs, policy, key)
    weights |= _normalizer(theirs, policy)
    for name in policy.denoiser.state_dict():
        weights[f"denoiser.{name}"] = _denoiser_weight(theirs, name, config)
    theirs.check_all_taken()
    wrong = [n for n, w in policy.state_dict().items() if w.shape != weights[n].shape]
    if wrong:
        found, expected = tuple(weights[wrong[0]].shape), tuple(policy.state_dict()[wrong[0]].shape)
        raise CheckpointError(
            f"{len(wrong)} published weights do not fit the configuration: "
            f"{wrong[0]} has shape {found}, expected {expected}.",
            "Give the configuration that it was trained with.",
        )
    policy.load_state_dict(weights)
    return policy.eval()


class _PublishedWeights:
    """A state dict that remembers what was taken from it."""

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self.weights = dict(state_dict)
        self.taken: set[str] = set()

    def take(self, *names: str) -> Tensor:
        """The weight under the first of its `names` that is there; all of them count as taken."""
        found = [n for n in names if n in self.weights]
        if not found:
            raise CheckpointError(f"the published checkpoint has no '{names[0]}'.", "Is it of another configuration?")
        self.taken.update(found)
        return self.weights[found[0]]

    def check_all_taken(self) -> None:
        def means_nothing(name: str) -> bool:
            parts = name.split(".")
            return parts[-1] in IGNORED or "input_stats" in parts or parts[0] == "mask_generator"

        left = sorted(n for n in self.weights if n not in self.taken and not means_nothing(n))
        if left:
            raise CheckpointError(
                f"{len(left)} published weights have no place in the configuration, the first is '{left[0]}'.",
                "Give the configuration that it was trained with.",
            )


def _camera(theirs: _PublishedWeights, policy: DiffusionPolicy, key: str) -> dict[str, Tensor]:
    prefix = f"obs_encoder.obs_nets.{key}."
    weights = {}
    for name in policy.encoders[key].state_dict():
        part, _, rest = name.partition(".")
        # backbone and pool stand twice in their state dict, once by name and once by position
        places = {
            "backbone": (f"backbone.nets.{rest}", f"nets.0.nets.{rest}"),
            "pool": (f"pool.nets.{rest.removeprefix('keypoints.')}", f"nets.1.nets.{rest.removeprefix('keypoints.')}"),
            "linear": (f"nets.3.{rest}",),
        }[part]
        weights[f"encoders.{key}.{name}"] = theirs.take(*(prefix + place for place in places))
    for place in ("pool.temperature", "nets.1.temperature"):
        temperature = theirs.weights.get(prefix + place, torch.ones(1))
        theirs.taken.add(prefix + place)
        if not torch.allclose(temperature, torch.ones(1)):
            raise CheckpointError(
                f"{prefix + place} is {float(temperature):g}; only 1 is known.", "Use another checkpoint."
            )
    return weights


def _normalizer(theirs: _PublishedWeights, policy: DiffusionPolicy) -> dict[str, Tensor]:
    weights = {}
    config = policy.config
    for part in ("scale", "offset"):
        for key in config.image_keys:  # always 0..1 -> -1..1
            theirs.taken.add(f"normalizer.params_dict.{key}.{part}")
        name = f"normalizer.params_dict.action.{part}"
        weights[f"normalizer.action_{part}"] = theirs.take(name)
        if config.obs == "state":  # one vector of all keys
            vector, widths = theirs.take(f"normalizer.params_dict.obs.{part}"), list(config.low_dim.values())
            if len(vector) != sum(widths):
                raise CheckpointError(
                    f"the published policy observes {len(vector)} values, "
                    f"the task '{config.task.name}' has {sum(widths)}.",
                    "Give the configuration that it was trained with.",
                )
            values = vector.split(widths)
        else:
            values = tuple(theirs.take(f"normalizer.params_dict.{key}.{part}") for key in config.low_dim)
        weights |= {f"normalizer.{key}_{part}": value for key, value in zip(config.low_dim, values, strict=True)}
    return weights


def _denoiser_weight(theirs: _PublishedWeights, name: str, config: PolicyConfig) -> Tensor:
    parts = name.split(".")
    kind = parts[-1]
    if parts[0] == "layers":
        stack = "decoder" if config.time_as_cond else "encoder"
        return _layer_weight(theirs, f"model.{stack}.layers.{parts[1]}.", parts[2:], config.time_as_cond)
    if parts[:2] == ["encoder", "layers"]:
        return _layer_weight(theirs, f"model.encoder.layers.{parts[2]}.", parts[3:], decoder=False)
    if parts[:2] == ["encoder", "mlp"]:
        return theirs.take(f"model.encoder.{parts[2]}.{kind}")
    return theirs.take("model." + name.replace("cond_emb.", "cond_obs_emb."))


def _layer_weight(theirs: _PublishedWeights, prefix: str, parts: list[str], decoder: bool) -> Tensor:
    """Ours keep query apart from key and value; torch packs the three into one."""
    module, kind = parts[0], parts[-1]
    if module in ("self_attention", "cross_attention"):
        attention = prefix + ("self_attn" if module == "self_attention" else "multihead_attn")
        if parts[1] == "out":
            return theirs.take(f"{attention}.out_proj.{kind}")
        packed = theirs.take(f"{attention}.in_proj_{kind}")
        width = len(packed) // 3
        return packed[:width] if parts[1] == "query" else packed[width:]
    if module == "norm3" and not decoder:  # ours is the feed-forward's norm, which an encoder calls norm2
        module = "norm2"
    return theirs.take(f"{prefix}{module}.{kind}")


POLICIES = {
    "DiffusionTransformerHybridImagePolicy": "image",
    "DiffusionTransformerLowdimPolicy": "state",
}
"""Published classes that are this policy, and what they observe."""


def load_published(path: Path) -> tuple[DiffusionPolicy, Meta]:
    """The policy in a `.ckpt` of the published code: EMA weights where it has them, its normaliser, its
    configuration; and what a native checkpoint says about it. Nothing that the file carries is executed.
    """
    payload = read_checkpoint(path)
    if not isinstance(payload, dict) or not isinstance(payload.get("state_dicts"), dict) or "cfg" not in payload:
        raise CheckpointError(f"'{path}' has no cfg and state_dicts.", "Name a .ckpt that the published code saved.")
    try:
        config = published_config(plain(payload["cfg"]), path)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, ConfigError) as e:
        raise CheckpointError(
            f"'{path}': its cfg cannot be read ({type(e).__name__}: {e}).",
            "Name a .ckpt that the published code saved.",
        ) from e
    weights = payload["state_dicts"].get("ema_model") or payload["state_dicts"].get("model")
    if not isinstance(weights, dict):
        raise CheckpointError(f"'{path}' has no weights (state_dicts.ema_model or model).", "Use another checkpoint.")
    policy = import_published({k: v for k, v in weights.items() if isinstance(v, Tensor)}, config)
    # Published policies were trained on robosuite's own pictures.
    return policy, {"published": path.name, "render": "full", "action": {**ACTIONS[config.actions]}}


def published_config(cfg: Any, path: Path) -> PolicyConfig:
    """Our configuration for a published one (a resolved dictionary)."""
    policy = cfg["policy"]
    family = str(policy["_target_"]).rsplit(".", 1)[-1]
    task = str(cfg.get("task_name") or cfg["task"]["name"])
    if family not in POLICIES:
        raise CheckpointError(
            f"'{path}' is a {family}, an architecture of another family.", f"Known: {', '.join(POLICIES)}."
        )
    name = next((known for known in TASKS if task.startswith(known)), None)
    if name is None:
        raise CheckpointError(f"'{path}' is of the task '{task}'.", f"Known tasks: {', '.join(TASKS)}.")
    model = policy.get("model") or {}
    values: dict[str, Any] = {"task": name, "obs": POLICIES[family]}
    for source in (policy, model):
        values |= {k: v for k, v in source.items() if k in PolicyConfig.model_fields and v is not None}
    values |= _schedule(policy["noise_scheduler"]) | {"actions": _actions(cfg, path)}
    # What they leave open: no crop, and as many inference steps as training steps.
    values.setdefault("num_inference_steps", values["num_train_timesteps"])
    values.setdefault("crop_shape", (IMAGE_SIZE, IMAGE_SIZE) if "crop_shape" in policy else (76, 76))
    if values["obs"] == "state":
        values["obs_as_cond"] = bool(policy.get("obs_as_cond", True))
    return PolicyConfig(**values)


def _actions(cfg: dict[str, Any], path: Path) -> str:
    policy = cfg["policy"]
    meta = policy.get("shape_meta") or cfg.get("shape_meta") or {}
    width = meta["action"]["shape"][0] if "action" in meta else policy.get("action_dim", ACTION_DIM)
    for name, convention in ACTIONS.items():
        if convention["dim"] == width:
            return name
    raise CheckpointError(f"'{path}' has actions of {width} values.", "Known: 7 (delta) and 10 (absolute).")


def _schedule(scheduler: dict[str, Any]) -> dict[str, Any]:
    kind = str(scheduler.get("_target_", "")).rsplit(".", 1)[-1]
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise CheckpointError(f"unknown noise scheduler '{kind}'.", "Known: DDPMScheduler, DDIMScheduler.")
    for key, only in (("variance_type", "fixed_small"), ("set_alpha_to_one", True), ("steps_offset", 0)):
        if scheduler.get(key, only) != only:
            raise CheckpointError(f"its noise scheduler has {key} {scheduler[key]!r}.", f"Only {only!r} is known.")
    known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "clip_sample", "prediction_type")
    values = {k: scheduler[k] for k in known if k in scheduler}
    sampler = "ddpm" if kind == "DDPMScheduler" else "ddim"
    return values | {"sampler": sampler, "timestep_spacing": scheduler.get("timestep_spacing", "leading")}
