"""Checkpoints as the published workspace saves them: `cfg` as OmegaConf nodes, and state dicts."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from core.published_recipe import CAMERAS, LOW_DIM
from torch import Tensor

TARGET = "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy"
LOW_DIM_TARGET = "diffusion_policy.policy.diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy"
OBS_KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


def shape_meta(keys: Sequence[str] = (*CAMERAS, *LOW_DIM), size: int = 84, action_dim: int = 7) -> dict[str, Any]:
    image = {"shape": [3, size, size], "type": "rgb"}
    obs = {key: dict(image) if key in CAMERAS else {"shape": [LOW_DIM[key]]} for key in keys}
    return {"obs": obs, "action": {"shape": [action_dim]}}


def published_cfg(target: str = TARGET, **policy: object) -> dict[str, Any]:
    """The resolved `cfg` of an image policy with 2 layers of width 32."""
    scheduler = {
        "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
        "num_train_timesteps": 100,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "squaredcos_cap_v2",
        "variance_type": "fixed_small",
        "clip_sample": True,
        "prediction_type": "epsilon",
    }
    settings = {"horizon": 10, "n_obs_steps": 2, "n_action_steps": 8, "crop_shape": [76, 76], "n_layer": 2, "n_emb": 32}
    settings |= {"_target_": target, "noise_scheduler": scheduler, "num_inference_steps": 5, "eval_fixed_crop": True}
    settings |= {"obs_encoder_group_norm": True, "shape_meta": shape_meta()}
    return {"task_name": "square_image", "policy": settings | policy}


def low_dim_cfg(obs_keys: Sequence[str] = OBS_KEYS, **policy: object) -> dict[str, Any]:
    """The resolved `cfg` of a low-dim policy with 2 layers of width 32."""
    model = {"input_dim": 7, "n_layer": 2, "n_emb": 32, "n_head": 4, "causal_attn": True, "n_obs_steps": 2}
    cfg = published_cfg(LOW_DIM_TARGET, model=model, obs_as_cond=True)
    for name in ("n_layer", "n_emb", "crop_shape", "eval_fixed_crop", "obs_encoder_group_norm", "shape_meta"):
        del cfg["policy"][name]
    cfg["policy"] |= policy
    return cfg | {"task_name": "can_lowdim", "task": {"name": "can_lowdim", "obs_keys": list(obs_keys)}}


def save_ckpt(
    path: Path,
    cfg: object,
    weights: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    legacy: bool = False,
    **extra: object,
) -> Path:
    """Saves a .ckpt as the published workspace does, with classes that cannot be imported afterwards."""
    module = types.ModuleType("omegaconf_stand_in")
    node = type("DictConfig", (), {"__module__": "omegaconf_stand_in"})
    module.DictConfig = node
    monkeypatch.setitem(sys.modules, "omegaconf_stand_in", module)

    def wrap(value: object) -> object:
        wrapped = node()
        wrapped.__dict__ = (
            {"_content": {k: wrap(v) for k, v in value.items()}} if isinstance(value, dict) else {"_val": value}
        )
        return wrapped

    payload = {
        "cfg": wrap(cfg),
        "state_dicts": {"model": weights, "ema_model": weights, "optimizer": {}},
        "pickles": {},
        **extra,
    }
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "omegaconf_stand_in")
    return path
