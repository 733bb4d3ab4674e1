"""What programs and people need to know to run an exported policy: policy.json and README.md."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from ddp_cli import __version__
from ddp_cli.core.checkpoint import Meta
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.deploy.runtime import FORMAT_VERSION
from ddp_cli.inference.agent import action_limits
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


# The block between the dashes is the metadata that model hubs read.
HEADER = """---
library_name: ddp
pipeline_tag: robotics
tags: [diffusion-policy, robosuite]
---

# Diffusion policy: {task}

Predicts {n_action_steps} actions from {n_obs_steps} observations at {control_hz} Hz; sampler {sampler}, \
{num_inference_steps} steps.
`policy.json` describes its inputs and outputs.
"""

USAGE = """```python
import numpy as np
from runtime import Policy, ChunkRunner     # runtime.py and safety.py in this folder; requires numpy and onnxruntime

runner = ChunkRunner(Policy.load("."), seed=0)
while True:                                 # at {hz} Hz
    action = runner.action({{
{keys}
    }})
    robot.command(action)                   # {action}
```

Actions are limited as in evaluation: {rule}.
`encoder.onnx` and `denoiser.onnx` are the parts of `policy.onnx`, for use with other samplers. They and `policy.onnx` \
itself do not limit actions.
"""

RULES = {
    "delta": "every value is clipped to [-1, 1]",
    "absolute": "positions are clipped to `limits` in `policy.json`, rotations are orthonormalized (degenerate ones "
    "are replaced by the previous rotation), the gripper is clipped to [-1, 1]",
}
UNLIMITED = """
Actions are not limited. Before a robot executes them, pass them to the rule that evaluation uses, `ddp_cli/safety.py`:
`ActionLimits.from_json(spec["limits"]).clamp(chunk, previous_action)`, with `spec` the content of `policy.json`.
"""

NOTES = {
    "pt2": 'Load the programs with `torch.export.load("encoder.pt2").module()`, likewise `denoiser.pt2`; `policy.json` '
    "describes their inputs.\n",
    "aoti": 'Load the programs with `torch._inductor.aoti_load_package("encoder.pt2")`, likewise `denoiser.pt2`; '
    "`policy.json` describes their inputs.\nThey are compiled for the CPU of the exporting machine and take contiguous "
    "tensors.\n",
    "safetensors": "`model.safetensors` contains the weights. `ddp export --format ddp` writes a checkpoint that `ddp` "
    "can run.\n",
}


def format_readme(spec: dict[str, Any], export_format: str, proof: dict[str, Any]) -> str:
    """The README.md of an exported folder, from the contents of its policy.json and proof.json."""
    task = spec["task"] if isinstance(spec["task"], str) else spec["task"]["name"]
    sections = [HEADER.format(**{**spec, "task": task})]
    if export_format == "onnx":
        keys = "\n".join(
            f'        "{key}": ...,  # {obs["dtype"]} {tuple(obs["shape"])}: {obs["unit"]}'
            for key, obs in spec["obs"].items()
        )
        convention = spec["policy"]["actions"]
        action = f"{convention} action, {len(spec['limits']['low'])} values"
        sections.append(USAGE.format(hz=spec["control_hz"], keys=keys, action=action, rule=RULES[convention]))
    else:
        sections.append(NOTES[export_format] + UNLIMITED)
    sections.append("\n".join(f"- {line}" for line in proof.get("words", [])))
    return "\n".join(sections).rstrip() + "\n"
