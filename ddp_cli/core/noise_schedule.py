"""The noise schedule of DDPM and DDIM (Ho et al. 2020; Nichol & Dhariwal 2021), as diffusers computes it.

Here because importing diffusers takes longer than loading a policy. Tests compare all values with those of diffusers.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from ddp_cli.policy_config import PolicyConfig


def alphas_cumprod(config: PolicyConfig) -> Tensor:
    """Cumulative products of alpha (num_train_timesteps,): how much of the signal each noise level keeps."""
    return torch.cumprod(1.0 - _betas(config), dim=0)


def add_noise(trajectory: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Trajectories (B, T, D) at noise levels whose cumulative products are `alpha` (B,); `noise` as `trajectory`."""
    alpha = alpha[:, None, None].to(trajectory.dtype)
    return alpha**0.5 * trajectory + (1 - alpha) ** 0.5 * noise


def _betas(config: PolicyConfig) -> Tensor:
    n = config.num_train_timesteps
    if config.beta_schedule == "linear":
        return torch.linspace(config.beta_start, config.beta_end, n, dtype=torch.float32)
    if config.beta_schedule == "scaled_linear":
        return torch.linspace(config.beta_start**0.5, config.beta_end**0.5, n, dtype=torch.float32) ** 2
    signal = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    betas = [min(1 - later / earlier, 0.999) for earlier, later in itertools.pairwise(signal)]
    return torch.tensor(betas, dtype=torch.float32)


def inference_timesteps(config: PolicyConfig) -> list[int]:
    """The timesteps of the denoising steps, in decreasing order; for DPM-Solver, those of `trailing`."""
    n_train, n = config.num_train_timesteps, config.num_inference_steps
    if config.resolved_timestep_spacing == "leading":
        return [i * (n_train // n) for i in range(n)][::-1]
    # Cut, because for some n rounding errors add one more, at timestep -1.
    return [int(k) - 1 for k in np.round(np.arange(n_train, 0, -n_train / n))[:n]]
