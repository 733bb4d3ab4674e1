"""policy.json of an exported folder: what programs need to know to run the policy."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from ddp_cli import __version__
from ddp_cli.core.checkpoint import Meta
from ddp_cli.core.noise_schedule import alphas_cumprod
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.deploy.runtime import FORMAT_VERSION
from ddp_cli.inference.onnx_policy import obs_keys
from ddp_cli.inference.policy_limits import action_limits


def policy_metadata(policy: DiffusionPolicy, meta: Meta) -> dict[str, Any]:
    """The content of policy.json. `meta` is the config.json of the checkpoint."""
    config = policy.config
    return {
        "format": FORMAT_VERSION,
        "task": config.task.to_json(),
        "obs": {key: _obs_entry(policy, key) for key in obs_keys(policy)},
        "n_obs_steps": config.n_obs_steps,
        "horizon": config.horizon,
        "n_action_steps": config.n_action_steps,
        "prefix_steps": config.prefix_steps,
        "action": meta.get("action"),
        "action_parts": [part.to_json() for part in config.action_parts],
        "limits": action_limits(policy, meta).to_json(),
        "action_range": meta.get("action_range"),
        "control_hz": config.task.schema.rate,
        "noise": [policy.n_noise_tensors, *policy.trajectory_shape],
        "sampler": config.sampler,
        "num_inference_steps": config.num_inference_steps,
        "timesteps": [step.timestep for step in policy.steps],
        "alphas_cumprod": alphas_cumprod(policy.config).tolist(),
        "features": policy.feature_dim,
        "action_normalizer": {
            part: policy.normalizer.get_buffer(f"action_{part}").tolist() for part in ("scale", "offset")
        },
        "policy": config.model_dump(mode="json"),
        "render": meta.get("render"),
        "step": meta.get("step"),
        "store": meta.get("store"),
        "train": _held_out(meta),
        "init_from": Path(str(origin)).name if (origin := meta.get("init_from")) else None,  # without its folder
        "versions": {"ddp": __version__} | {n: importlib.metadata.version(n) for n in ("torch", "diffusers", "onnx")},
    }


def _held_out(meta: Meta) -> dict[str, Any] | None:
    """The settings that say which episodes were held out of training; None where they are not known."""
    train = meta.get("train")
    return {key: train.get(key) for key in ("seed", "val_ratio")} if isinstance(train, dict) else None


def _obs_entry(policy: DiffusionPolicy, key: str) -> dict[str, Any]:
    schema = policy.config.task.schema
    if key in policy.config.cameras:
        camera = schema.cameras[key]
        colors = "RGB" if camera.channels == 3 else "gray"
        resized = {"recorded_shape": list(camera.recorded_shape), "fit": camera.fit} if camera.recorded else {}
        return {"shape": list(camera.shape), "dtype": "uint8", "unit": f"{colors}, 0 to 255, upright", **resized}
    vector = schema.vectors[key]
    names = {"names": list(vector.names)} if vector.names else {}
    return {"shape": [vector.width], "dtype": "float32", "unit": vector.unit or "as recorded", **names}
