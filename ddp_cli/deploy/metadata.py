"""What a program, and a person, must know to run an exported policy: policy.json and README.md."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from ddp_cli import __version__
from ddp_cli.core.checkpoint import Meta
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.deploy.runtime import FORMAT
from ddp_cli.inference.agent import safety_of
from ddp_cli.inference.onnx_policy import n_noise_tensors, obs_keys, trajectory_width
from ddp_cli.safety import Safety
from ddp_cli.tasks import CONTROL_HZ, IMAGE_SIZE

UNITS = {
    "robot0_eef_pos": "m, position of the hand, world frame",
    "robot0_eef_quat": "quaternion x, y, z, w of the hand, world frame",
    "robot0_gripper_qpos": "m, joints of the fingers",
}


def describe(policy: DiffusionPolicy, meta: Meta) -> dict[str, Any]:
    """The content of policy.json."""
    config = policy.config
    return {
        "format": FORMAT,
        "task": config.task.to_json(),
        "obs": {key: _obs(policy, key) for key in obs_keys(policy)},
        "n_obs_steps": config.n_obs_steps,
        "horizon": config.horizon,
        "n_action_steps": config.n_action_steps,
        "action": meta.get("action"),
        "limits": _limits(safety_of(policy)),
        "control_hz": CONTROL_HZ,
        "noise": [n_noise_tensors(policy), config.trajectory_steps, trajectory_width(policy)],
        "sampler": config.sampler,
        "num_inference_steps": config.num_inference_steps,
        "timesteps": [step.timestep for step in policy.steps],
        "alphas_cumprod": policy.noising.alphas_cumprod.tolist(),
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


def _obs(policy: DiffusionPolicy, key: str) -> dict[str, Any]:
    if key in policy.config.image_keys:
        return {"shape": [IMAGE_SIZE, IMAGE_SIZE, 3], "dtype": "uint8", "unit": "RGB, 0 to 255, upright"}
    return {
        "shape": [policy.config.low_dim[key]],
        "dtype": "float32",
        "unit": UNITS.get(key, "as robosuite observes it"),
    }


def _limits(safety: Safety) -> dict[str, list[float | None]]:
    """Of each number of an action; None: no limit."""
    if safety.actions == "delta":
        return {"low": [-1.0] * safety.dim, "high": [1.0] * safety.dim}
    free: list[float | None] = [None] * (safety.dim - 4)
    return {"low": [*safety.low, *free, -1.0], "high": [*safety.high, *free, 1.0]}


USAGE = """import numpy as np
from runtime import Policy, ChunkRunner          # runtime.py lies beside this file; it needs numpy and onnxruntime

stream = ChunkRunner(Policy.load("."), seed=0)
while True:                                 # {hz} times a second
    action = stream.action({{
{keys}
    }})
    robot.command(action)                   # {what}"""


def readme(spec: dict[str, Any], kind: str, proof: dict[str, Any]) -> str:
    """The README.md of an exported folder."""
    task = spec["task"] if isinstance(spec["task"], str) else spec["task"]["name"]
    action = spec["action"] or {}
    keys = "\n".join(
        f'        "{key}": ...,  # {obs["dtype"]} {tuple(obs["shape"])}: {obs["unit"]}'
        for key, obs in spec["obs"].items()
    )
    what = f"{action.get('convention', 'delta')} action, {len(spec['limits']['low'])} numbers"
    # The block between the dashes is what model hubs read.
    lines = [
        "---", "library_name: ddp", "pipeline_tag: robotics", "tags: [diffusion-policy, robosuite]", "---", "",
        f"# Diffusion policy: {task}", "",
        f"Predicts {spec['n_action_steps']} actions from {spec['n_obs_steps']} observations, {spec['control_hz']} Hz;",
        f"{spec['sampler']}, {spec['num_inference_steps']} steps. `policy.json` says what goes in and out.", "",
    ]  # fmt: skip
    if kind == "onnx":
        lines += ["```python", USAGE.format(hz=spec["control_hz"], keys=keys, what=what), "```", ""]
        lines += ["`encoder.onnx` and `denoiser.onnx` are the parts of `policy.onnx`, for samplers of your own.", ""]
    elif kind == "pt2":
        lines += ['`torch.export.load("encoder.pt2").module()`, and `denoiser.pt2`, take what `policy.json` says.', ""]
    elif kind == "aoti":
        lines += [
            '`torch._inductor.aoti_load_package("encoder.pt2")`, and `denoiser.pt2`, take what `policy.json` says.'
        ]
        lines += ["They are compiled for the processor that exported them, and for contiguous tensors.", ""]
    else:
        lines += [
            "`model.safetensors` holds the weights; `ddp export --format ddp` makes a checkpoint that `ddp` runs.",
            "",
        ]
    lines += [f"- {line}" for line in proof.get("words", [])]
    return "\n".join(lines).rstrip() + "\n"
