"""README.md of an exported folder: the model card, with the code that runs the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddp_cli.deploy.model_card_results import model_index, results_section
from ddp_cli.deploy.model_card_tables import action_table, obs_table, one_line, shape_text, training_table
from ddp_cli.evaluation.stored_reports import StoredReports

PICTURE_FILE = "episode.jpg"

# The block between the dashes is the metadata that model hubs read.
HEADER = """---
library_name: ddp
pipeline_tag: robotics
tags: [{tags}]
{model_index}---

# Diffusion policy: {task}

At {control_hz:g} Hz, the policy takes the last {n_obs_steps} observations and predicts {horizon} actions, of which \
{n_action_steps} are executed before it predicts again. Sampler: {sampler}, {num_inference_steps} steps.
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

`python device_check.py` compares the files with their hashes, and measures on your computer how long a chunk takes. \
`streaming.py` computes the next chunk while the robot moves.

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
Actions are not limited. Before a robot executes them, pass them to the rule that evaluation uses,
`ddp_cli/action_limits.py`: `ActionLimits.from_json(spec["limits"]).clamp(chunk, previous_action)`, with `spec` the
content of `policy.json`.
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


def format_model_card(
    spec: Mapping[str, Any],
    meta: Mapping[str, Any],
    proof: Mapping[str, Any],
    reports: StoredReports,
    caption: str | None,
) -> str:
    """The README.md of an exported folder.

    spec      content of its policy.json
    meta      config.json of the checkpoint
    proof     content of its proof.json
    reports   evaluations of the checkpoint
    caption   what its picture shows, None without one
    """
    sections = [_header(spec, reports)]
    if caption:
        sections.append(f"![{caption}]({PICTURE_FILE})\n\n{caption}.\n")
    sections += [
        "## Observations\n\n" + obs_table(spec["obs"]),
        "## Actions\n\n" + action_table(spec["action_parts"], spec["limits"]),
        "## Training\n\n" + training_table(meta),
        "## Evaluation\n\n" + results_section(spec, reports),
        "## Use\n\n" + _usage(spec),
    ]
    if lines := proof.get("words", []):
        sections.append("## Checks of this export\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n".join(sections).rstrip() + "\n"


def _header(spec: Mapping[str, Any], reports: StoredReports) -> str:
    has_robosuite = isinstance(spec["task"], str) or bool(spec["task"]["simulator"])
    task = spec["task"] if isinstance(spec["task"], str) else spec["task"]["name"]
    tags = ", ".join(["diffusion-policy", *["robosuite"] * has_robosuite])
    return HEADER.format(**{**spec, "task": task, "tags": tags, "model_index": model_index(task, reports.episodes)})


def _usage(spec: Mapping[str, Any]) -> str:
    if spec["files"] != "onnx":
        return NOTES[spec["files"]] + UNLIMITED
    keys = "\n".join(
        f'        "{key}": ...,  # {obs["dtype"]} {shape_text(obs)}: {one_line(obs["unit"])}'
        for key, obs in spec["obs"].items()
    )
    convention = spec["policy"]["actions"]
    action = f"{convention} action, {len(spec['limits']['low'])} values"
    return USAGE.format(hz=spec["control_hz"], keys=keys, action=action, rule=RULES[convention])
