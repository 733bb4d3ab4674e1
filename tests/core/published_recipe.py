"""Weights and inputs for which outputs of the published implementation are stored in tests/data.

Every tensor is a function of its published name, so nothing needs to be downloaded. The names and shapes of a
configuration are derived from `DiffusionPolicy`, by the inverse of `import_published`.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.policy_config import PolicyConfig

LOW_DIM = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    # The published state dict contains backbone and pool twice, by name and by position.
    name = name.replace(".backbone.", ".nets.0.").replace(".pool.", ".nets.1.")
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    r = np.random.RandomState(seed).standard_normal(int(np.prod(shape))).astype(np.float32)
    if ".params_dict." in name:
        values = 0.8 + 0.1 * np.tanh(r) if name.endswith("scale") else 0.05 * r
    elif name.endswith("weight") and len(shape) == 1:
        values = 1 + 0.1 * r
    else:
        values = 0.05 * r
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def inputs(n_steps: int, horizon: int = 10, batch: int = 2) -> tuple[dict[str, Tensor], Tensor]:
    r = np.random.RandomState(1234)
    shape = (batch, n_steps)
    obs = {k: torch.from_numpy(r.randint(0, 256, (*shape, 3, 84, 84)).astype(np.uint8)) for k in CAMERAS}
    obs |= {k: torch.from_numpy(r.standard_normal((*shape, d)).astype(np.float32)) for k, d in LOW_DIM.items()}
    action = np.clip(r.standard_normal((batch, horizon, 7)), -1, 1).astype(np.float32)
    return obs, torch.from_numpy(action)


def state_dict(config: PolicyConfig) -> dict[str, Tensor]:
    """The published state dict of `config`, without buffers."""
    shapes: dict[str, tuple[int, ...]] = {}
    weight_shapes = {n: tuple(w.shape) for n, w in DiffusionPolicy(config).state_dict().items()}
    c = config.n_emb
    for name, shape in weight_shapes.items():
        parts = name.split(".")
        if parts[0] == "encoders":
            key, module, rest = parts[1], parts[2], ".".join(parts[3:]).removeprefix("keypoints.")
            position = {"backbone": "nets.0.nets.", "pool": "nets.1.nets.", "linear": "nets.3."}[module]
            shapes[f"obs_encoder.obs_nets.{key}.{position}{rest}"] = shape
        elif parts[0] == "normalizer":
            key, _, part = parts[1].rpartition("_")
            shapes[f"normalizer.params_dict.{key}.{part}"] = shape
        elif "_attention." in name:
            if ".query." not in name and ".key_value." not in name:
                published_name = _layer(name, config).replace("self_attention.out", "self_attn.out_proj")
                shapes[published_name.replace("cross_attention.out", "multihead_attn.out_proj")] = shape
                continue
            published_name = (
                _layer(name, config).replace("self_attention", "self_attn").replace("cross_attention", "multihead_attn")
            )
            published_name = published_name.replace(".query.", ".in_proj_").replace(".key_value.", ".in_proj_")
            shapes[published_name] = (3 * c, c) if name.endswith("weight") else (3 * c,)
        else:
            shapes[_layer(name, config)] = shape
    return {name: weight(name, shape) for name, shape in shapes.items()}


def _layer(name: str, config: PolicyConfig) -> str:
    name = name.replace("denoiser.", "model.")
    in_encoder = name.startswith("model.encoder.layers") or (
        name.startswith("model.layers") and not config.time_as_cond
    )
    if name.startswith("model.layers"):
        name = name.replace("model.layers", "model.decoder.layers" if config.time_as_cond else "model.encoder.layers")
    if in_encoder:
        name = name.replace("norm3", "norm2")
    return name.replace("cond_emb.", "cond_obs_emb.").replace("encoder.mlp", "encoder")


def low_dim_weights(config: PolicyConfig) -> dict[str, Tensor]:
    """The state dict of a low-dim policy, which normalizes all observations as one vector in the order of the task."""
    weights = state_dict(config)
    for part in ("scale", "offset"):
        values = [weights.pop(f"normalizer.params_dict.{key}.{part}") for key in config.low_dim]
        weights[f"normalizer.params_dict.obs.{part}"] = torch.cat(values)
    return weights
