"""README.md of an exported folder: the model card, with the code that runs the policy."""

from __future__ import annotations

from typing import Any

# The block between the dashes is the metadata that model hubs read.
HEADER = """---
library_name: ddp
pipeline_tag: robotics
tags: [diffusion-policy, robosuite]
---

# Diffusion policy: {task}

Predicts {n_action_steps} actions from {n_obs_steps} observations at {control_hz:g} Hz; sampler {sampler}, \
{num_inference_steps} steps.
`policy.json` describes its inputs and outputs.
"""

USAGE = """```python
import numpy as np
from runtime import Policy, ChunkRunner     # in this folder; requires numpy and onnxruntime

runner = ChunkRunner(Policy.load("."), seed=0)
while True:                                 # at {hz:g} Hz
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
    "recorded": "every value is clipped to `limits` in `policy.json`, rotations are normalized",
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


def _shapes(obs: dict[str, Any]) -> str:
    return " or ".join(str(tuple(obs[key])) for key in ("shape", "recorded_shape") if key in obs)


def format_model_card(spec: dict[str, Any], export_format: str, proof: dict[str, Any]) -> str:
    """The README.md of an exported folder, from the contents of its policy.json and proof.json."""
    task = spec["task"] if isinstance(spec["task"], str) else spec["task"]["name"]
    sections = [HEADER.format(**{**spec, "task": task})]
    if export_format == "onnx":
        keys = "\n".join(
            f'        "{key}": ...,  # {obs["dtype"]} {_shapes(obs)}: {obs["unit"]}' for key, obs in spec["obs"].items()
        )
        convention = spec["policy"]["actions"]
        action = f"{convention} action, {len(spec['limits']['low'])} values"
        sections.append(USAGE.format(hz=spec["control_hz"], keys=keys, action=action, rule=RULES[convention]))
    else:
        sections.append(NOTES[export_format] + UNLIMITED)
    sections.append("\n".join(f"- {line}" for line in proof.get("words", [])))
    return "\n".join(sections).rstrip() + "\n"
