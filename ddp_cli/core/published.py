"""Imports checkpoints of the published diffusion policy code.

Its state dicts contain `obs_encoder.obs_nets.<camera>` (the robomimic encoder), `model` (the transformer) and
`normalizer.params_dict.<key>` (scale and offset). Buffers that follow from the architecture are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_cli.core.checkpoint import Meta
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.published_config import describe_assumptions, published_config
from ddp_cli.core.published_observations import feature_order
from ddp_cli.core.safe_unpickle import FILE_HINT, InertObject, read_torch_file, to_plain_containers
from ddp_cli.core.vision import IMAGE_FEATURE_DIM
from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.policy_config import PolicyConfig

IGNORED_SUFFIXES = ("_dummy_variable", "mask", "memory_mask", "pos_x", "pos_y")
"""Last parts of the names of buffers that are not weights."""

CONFIG_HINT = "Give the configuration that it was trained with."


def import_published(
    state_dict: Mapping[str, Tensor], config: PolicyConfig, order: Sequence[str] | None = None
) -> DiffusionPolicy:
    """The policy of `config` with the weights of a published state dict, in eval mode.

    `order`: keys of the observations in the order in which the published policy concatenates their features, if it
    differs from that of `config`. The columns of the layers that see the features are permuted accordingly.
    CheckpointError if weights are missing, unused or of other shapes than those of `config`.
    """
    published = _PublishedWeights(state_dict)
    order = order or [*config.image_keys, *config.low_dim]
    _check_size(published, config)
    policy = DiffusionPolicy(config)
    weights: dict[str, Tensor] = {}
    for key in policy.encoders:
        weights |= _image_encoder_weights(published, policy, key)
    weights |= _normalizer_weights(published, policy, order)
    for name in policy.denoiser.state_dict():
        weights[f"denoiser.{name}"] = _denoiser_weight(published, name, config)
    published.check_all_used()
    expected = {name: tuple(weight.shape) for name, weight in policy.state_dict().items()}
    mismatched = [name for name, shape in expected.items() if weights[name].shape != shape]
    non_finite = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if non_finite:
        raise CheckpointError(
            f"{len(non_finite)} published weights are not finite, the first is {non_finite[0]}.",
            "Use an earlier checkpoint: the training diverged.",
        )
    if mismatched:
        name = mismatched[0]
        raise CheckpointError(
            f"{len(mismatched)} published weights do not fit the configuration: "
            f"{name} has shape {tuple(weights[name].shape)}, expected {expected[name]}.",
            CONFIG_HINT,
        )
    policy.load_state_dict(_permute_features(weights, config, order))
    return policy.eval()


def _permute_features(weights: dict[str, Tensor], config: PolicyConfig, order: Sequence[str]) -> dict[str, Tensor]:
    """`weights` with the features in the order of `config` instead of `order`."""
    widths = dict.fromkeys(config.image_keys, IMAGE_FEATURE_DIM) | config.low_dim
    positions = dict(zip(order, torch.arange(sum(widths.values())).split([widths[key] for key in order]), strict=True))
    columns = torch.cat([positions[key] for key in widths])  # published position of each of our features
    if config.obs_as_cond:
        name = "denoiser.cond_emb.weight"
        return weights | {name: weights[name][:, columns]}
    # Inpainting: the features follow the action in the trajectory that is denoised.
    columns = torch.cat([torch.arange(config.action_dim), config.action_dim + columns])
    changed = {f"denoiser.head.{kind}": weights[f"denoiser.head.{kind}"][columns] for kind in ("weight", "bias")}
    return weights | changed | {"denoiser.input_emb.weight": weights["denoiser.input_emb.weight"][:, columns]}


def _check_size(published: _PublishedWeights, config: PolicyConfig) -> None:
    """CheckpointError unless the transformer has the layers and the width of `config`: before it is built, which may
    take more memory than there is if `config` is wrong.
    """
    last_layer = f"layers.{config.n_layer - 1}.linear1.weight"
    shape = tuple(published.get(f"model.{'decoder' if config.time_as_cond else 'encoder'}.{last_layer}").shape)
    if shape != (4 * config.n_emb, config.n_emb):
        raise CheckpointError(
            f"the published weights do not fit the configuration: {last_layer} has shape {shape}, "
            f"expected {(4 * config.n_emb, config.n_emb)}.",
            CONFIG_HINT,
        )


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


def _normalizer_weights(
    published: _PublishedWeights, policy: DiffusionPolicy, order: Sequence[str]
) -> dict[str, Tensor]:
    weights = {}
    config = policy.config
    for part in ("scale", "offset"):
        for key in config.image_keys:  # always 0..1 -> -1..1
            published.used.add(f"normalizer.params_dict.{key}.{part}")
        weights[f"normalizer.action_{part}"] = published.get(f"normalizer.params_dict.action.{part}")
        keys = list(config.low_dim)
        if config.obs == "state":  # one vector for all keys
            vector = published.get(f"normalizer.params_dict.obs.{part}")
            if len(vector) != sum(config.low_dim.values()):
                raise CheckpointError(
                    f"the published policy observes {len(vector)} values, "
                    f"the task '{config.task.name}' has {sum(config.low_dim.values())}.",
                    CONFIG_HINT,
                )
            keys = list(order)
            values = vector.split([config.low_dim[key] for key in keys])
        else:
            values = tuple(published.get(f"normalizer.params_dict.{key}.{part}") for key in keys)
        weights |= {f"normalizer.{key}_{part}": value for key, value in zip(keys, values, strict=True)}
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
    native checkpoint. No code from the file is executed. `assumed` in the metadata lists what the file does not say.

    CheckpointError if the file is damaged, or holds another kind of policy or a setting that is not supported.
    """
    payload = read_torch_file(path)
    if not isinstance(payload, dict) or not isinstance(payload.get("state_dicts"), dict) or "cfg" not in payload:
        raise CheckpointError(f"'{path}' has no cfg and state_dicts: it is {_describe(payload)}.", FILE_HINT)
    try:
        cfg = to_plain_containers(payload["cfg"])
        saved_weights, assumed = _choose_weights(cfg, payload["state_dicts"])
        weights = _strip_wrappers(saved_weights)
        config = published_config(cfg, path, weights)
        order = feature_order(cfg, config, path)
        assumed += describe_assumptions(cfg, config)
    except CheckpointError:
        raise
    except ConfigError as e:
        raise CheckpointError(f"'{path}' cannot be imported: {e.message}", e.hint or "Use another checkpoint.") from e
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as e:
        raise CheckpointError(f"'{path}': its cfg cannot be read ({type(e).__name__}: {e}).", FILE_HINT) from e
    if not weights:
        raise CheckpointError(f"'{path}' has no weights (state_dicts.ema_model or model).", "Use another checkpoint.")
    _check_image_normalizers(weights, config, path)
    policy = import_published(weights, config, order)
    # Published policies were trained on robosuite's own camera images: the render profile "full".
    meta: Meta = {"published": path.name, "render": "full", "action": {**config.task.describe_action(config.actions)}}
    return policy, meta | ({"assumed": [*assumed]} if assumed else {})


def _choose_weights(cfg: Any, state_dicts: dict[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that the published evaluation uses, those of `ema_model` unless `training.use_ema` is False, and
    what it assumes of them.
    """
    use_ema, assumed = (cfg.get("training") or {}).get("use_ema", True), []
    weights = state_dicts.get("ema_model") if use_ema else None
    if not weights:
        weights = state_dicts.get("model")
        assumed = ["model for the missing EMA weights (ema_model)"] if use_ema else []
    items = weights.items() if isinstance(weights, dict) else ()
    return {name: weight for name, weight in items if isinstance(weight, Tensor)}, assumed


def _strip_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` without the prefixes of DistributedDataParallel, DataParallel (`module.`) and torch.compile."""
    stripped: dict[str, Tensor] = {}
    for name, weight in weights.items():
        short = ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
        if short in stripped:
            raise CheckpointError(f"the published checkpoint has '{short}' twice.", "Use another checkpoint.")
        stripped[short] = weight
    return stripped


def _check_image_normalizers(weights: Mapping[str, Tensor], config: PolicyConfig, path: Path) -> None:
    """Images are mapped from 0..1 to -1..1; another normalization is refused."""
    for key in config.image_keys:
        for part, expected in (("scale", 2.0), ("offset", -1.0)):
            value = weights.get(f"normalizer.params_dict.{key}.{part}")
            if value is not None and not torch.allclose(value, torch.full_like(value, expected)):
                raise CheckpointError(
                    f"'{path}' normalizes {key} with {part} {value.flatten()[0]:g}.",
                    f"Only {expected:g}, from 0..1 to -1..1, is supported.",
                )


def _describe(payload: Any) -> str:
    """What a torch file holds, for an error message."""
    if isinstance(payload, InertObject):
        return f"an object of {payload.name}"
    if not isinstance(payload, dict):
        return f"a {type(payload).__name__}"
    if payload and all(isinstance(value, Tensor) for value in payload.values()):
        return "a state dict, without a configuration"
    keys = [str(key) for key in payload]
    return f"a dictionary with the keys {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}"
