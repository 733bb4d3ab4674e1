"""An exported folder as the agent of an episode, run by `runtime.py` as on a robot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_cli.config import PolicyConfig
from ddp_cli.deploy.runtime import FORMAT_VERSION, SPEC_FILE, Policy, PolicyError
from ddp_cli.errors import CheckpointError, DdpError
from ddp_cli.inference.onnx_policy import sample_noise
from ddp_cli.safety import ActionLimits

REQUIRED_KEYS = ("policy", "render", "action_normalizer")
EXPORT_HINT = "Create one: `ddp export CHECKPOINT --out policy/`."


def open_exported_policy(folder: Path) -> Policy:
    """The policy in `folder`; CheckpointError if there is none, or if policy.json lacks what an episode needs."""
    try:
        policy = Policy.load(folder)
    except PolicyError as e:
        raise CheckpointError(str(e), EXPORT_HINT) from e
    _check_spec(policy.spec, folder)
    return policy


def read_spec(folder: Path) -> dict[str, Any]:
    """The content of policy.json in a folder exported in any format; CheckpointError if it is damaged or too old."""
    path = folder / SPEC_FILE
    try:
        spec = json.loads(path.read_text())
        version = spec["format"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"'{path}' is damaged.", EXPORT_HINT) from e
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"'{path}' has format {version}, this version of ddp reads format {FORMAT_VERSION}.", EXPORT_HINT
        )
    _check_spec(spec, folder)
    return dict(spec)


def _check_spec(spec: dict[str, Any], folder: Path) -> None:
    missing = [key for key in REQUIRED_KEYS if key not in spec]
    if missing or not isinstance(spec["policy"], dict):
        raise CheckpointError(f"'{folder / SPEC_FILE}' has no {(missing or ['policy'])[0]}.", EXPORT_HINT)


def exported_config(spec: Mapping[str, Any]) -> PolicyConfig:
    """The configuration in policy.json."""
    return PolicyConfig(**spec["policy"])


class ExportedAgent:
    """Runs an exported policy, with the noise that `PolicyAgent` samples for the same seed."""

    def __init__(self, policy: Policy) -> None:
        config, normalizer = exported_config(policy.spec), policy.spec["action_normalizer"]
        self.policy = policy
        self.obs: str = config.obs
        self.actions: str = config.actions
        self.n_obs_steps = config.n_obs_steps
        self.n_action_steps = config.n_action_steps
        self.action_limits = ActionLimits.from_normalizer(config.actions, normalizer["scale"], normalizer["offset"])
        self._generator = torch.Generator()

    def reset(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def act(self, history: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.floating[Any]]:
        """The next actions (Ta, Da) for the last To observations, oldest first."""
        obs = {key: np.stack([step[key] for step in history]) for key in self.policy.obs}
        try:
            return self.policy.act(obs, sample_torch_noise(self.policy, self._generator))
        except PolicyError as e:
            raise DdpError(str(e)) from e


def sample_torch_noise(policy: Policy, generator: torch.Generator) -> NDArray[np.float32]:
    """Noise (N, T, D) for `Policy.act`, sampled in the order in which a checkpoint samples it."""
    n_tensors, *shape = policy.spec["noise"]
    return sample_noise(n_tensors, (1, *shape), generator)[:, 0].numpy()


def load_exported_agent(folder: Path) -> ExportedAgent:
    """The agent of an exported folder."""
    return ExportedAgent(open_exported_policy(folder))
