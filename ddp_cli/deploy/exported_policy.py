"""An exported folder as the agent of an episode, run by `runtime.py` as anybody else would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_cli.config import PolicyConfig
from ddp_cli.deploy.runtime import GRAPH, SPEC, Policy, PolicyError
from ddp_cli.errors import CheckpointError, DdpError
from ddp_cli.inference.onnx_policy import draw_noise
from ddp_cli.safety import Safety

NEEDED = ("policy", "render", "action_normalizer")


def is_exported(folder: Path) -> bool:
    """Whether `folder` is a policy exported as ONNX."""
    return (folder / SPEC).is_file() and (folder / GRAPH).is_file()


def open_policy(folder: Path) -> Policy:
    """The policy in `folder`, with all that an episode needs to know of it; CheckpointError if it is none."""
    hint = "Make one: `ddp export CHECKPOINT --out policy/`."
    try:
        policy = Policy.load(folder)
    except PolicyError as e:
        raise CheckpointError(str(e), hint) from e
    absent = [key for key in NEEDED if key not in policy.spec]
    if absent or not isinstance(policy.spec["policy"], dict):
        raise CheckpointError(f"'{folder / SPEC}' does not say {(absent or ['policy'])[0]}.", hint)
    return policy


def config_of(policy: Policy) -> PolicyConfig:
    """The configuration that it was exported with."""
    return PolicyConfig(**policy.spec["policy"])


class ExportedAgent:
    """Runs an exported policy, with the same noise per start as `PolicyAgent` takes."""

    def __init__(self, policy: Policy) -> None:
        config, normalizer = config_of(policy), policy.spec["action_normalizer"]
        self.policy = policy
        self.obs: str = config.obs
        self.actions: str = config.actions
        self.n_obs_steps = config.n_obs_steps
        self.n_action_steps = config.n_action_steps
        self.safety = Safety.from_normalizer(config.actions, normalizer["scale"], normalizer["offset"])
        self._generator = torch.Generator()

    def reset(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def act(self, history: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.floating[Any]]:
        obs = {key: np.stack([frame[key] for frame in history]) for key in self.policy.obs}
        try:
            return self.policy.act(obs, draw_torch_noise(self.policy, self._generator))
        except PolicyError as e:
            raise DdpError(str(e)) from e


def draw_torch_noise(policy: Policy, generator: torch.Generator) -> NDArray[np.float32]:
    """Noise as a checkpoint draws it: one array after the other."""
    draws, *shape = policy.spec["noise"]
    return draw_noise(draws, (1, *shape), generator)[:, 0].numpy()


def load_exported(folder: Path) -> ExportedAgent:
    """The agent of an exported folder."""
    return ExportedAgent(open_policy(folder))
