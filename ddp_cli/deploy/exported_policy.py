"""An exported folder as the agent of an episode, run by `runtime.py` as on a robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_cli.core.diffusion import sample_noise
from ddp_cli.deploy.exported_folder import open_exported_policy
from ddp_cli.deploy.runtime import Policy, PolicyError
from ddp_cli.errors import DdpError
from ddp_cli.policy_config import PolicyConfig


def exported_config(spec: Mapping[str, Any]) -> PolicyConfig:
    """The configuration in policy.json."""
    return PolicyConfig(**spec["policy"])


class ExportedAgent:
    """Runs an exported policy, with the noise that `PolicyAgent` samples for the same seed."""

    def __init__(self, policy: Policy) -> None:
        config = exported_config(policy.spec)
        self.policy = policy
        self.obs: str = config.obs
        self.actions: str = config.actions
        self.n_obs_steps = config.n_obs_steps
        self.n_action_steps = config.n_action_steps
        self.prefix_steps = config.prefix_steps
        self.control_hz = config.task.schema.rate
        self.action_limits = policy.limits
        self._generator = torch.Generator()

    def reset(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def act(
        self, history: Sequence[Mapping[str, NDArray[Any]]], prefix: NDArray[np.floating[Any]] | None = None
    ) -> NDArray[np.floating[Any]]:
        """The next actions (Ta, Da) for the last To observations, oldest first, not yet limited. They start with the
        actions `prefix` (P, Da), at most `prefix_steps`.
        """
        obs = {key: np.stack([step[key] for step in history]) for key in self.policy.obs}
        try:
            return self.policy.predict(obs, sample_torch_noise(self.policy, self._generator), prefix)
        except PolicyError as e:
            raise DdpError(str(e)) from e


def sample_torch_noise(policy: Policy, generator: torch.Generator) -> NDArray[np.float32]:
    """Noise (N, T, D) for `Policy.predict`, sampled in the order in which a checkpoint samples it."""
    n_tensors, *shape = policy.spec["noise"]
    return sample_noise(n_tensors, (1, *shape), generator)[:, 0].numpy()


def load_exported_agent(folder: Path, provider: str = "cpu") -> ExportedAgent:
    """The agent of an exported folder; `provider` is one of runtime.PROVIDERS."""
    return ExportedAgent(open_exported_policy(folder, provider))
