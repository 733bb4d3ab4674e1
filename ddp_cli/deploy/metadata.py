"""policy.json of an exported folder: what programs need to know to run the policy."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from ddp_cli import __version__
from ddp_cli.core.checkpoint import Meta
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.deploy.runtime import FORMAT_VERSION
from ddp_cli.inference.action_limits import action_limits
from ddp_cli.inference.onnx_policy import n_noise_tensors, obs_keys
from ddp_cli.tasks import CONTROL_HZ, IMAGE_SIZE

UNITS = {
    "robot0_eef_pos": "m, position of the end effector, world frame",
    "robot0_eef_quat": "quaternion x, y, z, w of the end effector, world frame",
    "robot0_gripper_qpos": "m, positions of the finger joints",
}


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
        "action": meta.get("action"),
        "limits": action_limits(policy, meta).to_json(),
        "action_range": meta.get("action_range"),
        "control_hz": CONTROL_HZ,
        "noise": [n_noise_tensors(policy), *policy.trajectory_shape],
        "sampler": config.sampler,
        "num_inference_steps": config.num_inference_steps,
        "timesteps": [step.timestep for step in policy.steps],
        "alphas_cumprod": policy.noise_scheduler.alphas_cumprod.tolist(),
        "features": policy.feature_dim,
        "action_normalizer": {
            part: policy.normalizer.get_buffer(f"action_{part}").tolist() for part in ("scale", "offset")
        },
        "policy": config.model_dump(mode="json"),
        "render": meta.get("render"),
        "step": meta.get("step"),
        "store": meta.get("store"),
        "versions": {"ddp": __version__} | {n: importlib.metadata.version(n) for n in ("torch", "diffusers", "onnx")},
    }


def _obs_entry(policy: DiffusionPolicy, key: str) -> dict[str, Any]:
    if key in policy.config.image_keys:
        return {"shape": [IMAGE_SIZE, IMAGE_SIZE, 3], "dtype": "uint8", "unit": "RGB, 0 to 255, upright"}
    return {
        "shape": [policy.config.low_dim[key]],
        "dtype": "float32",
        "unit": UNITS.get(key, "as observed by robosuite"),
    }
