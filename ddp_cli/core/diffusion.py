"""Reverse diffusion of trajectories; the only user of diffusers.

Symbols of DDPM (Ho et al. 2020): x_k the trajectory after k noising steps, epsilon its noise, alpha the cumulative
product (alpha bar in the paper). diffusers' schedulers define the samplers; each of their steps is linear in the
tensors involved, so it is reduced here to coefficients that are computed once. diffusers itself is imported where it is
used only: for DPM-Solver, not to train or to run another policy. A coefficient of `Step` is named for
the tensor that it multiplies:

    clean  = clip(s.clean_from_x * x + s.clean_from_out * out)
    x_next = s.x * x + s.out * out + s.clean * clean + s.prev_clean * prev_clean + s.noise * z

with `out` the network's output, `clean` the clean trajectory it predicts (x_0), `prev_clean` that of the previous step
and z standard normal noise.

Shapes: B batch, T steps of the trajectory, D its width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddp_cli.core.noise_schedule import alphas_cumprod, inference_timesteps
from ddp_cli.policy_config import PolicyConfig

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    Scheduler = DDPMScheduler | DDIMScheduler | DPMSolverMultistepScheduler

DenoiseFn = Callable[[Tensor, int], Tensor]
"""The network in one denoising step: (trajectory (B, T, D), index of the step) -> output (B, T, D)."""


def make_scheduler(config: PolicyConfig) -> Scheduler:
    """The scheduler of `config`, with its timesteps set: DDPM (section 3.2), DDIM (Song et al. 2021, eta 0) or
    DPM-Solver++ (Lu et al. 2022, 2M). All clip the predicted clean trajectory if `clip_sample`.
    """
    common: dict[str, Any] = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction_type,
        "timestep_spacing": config.resolved_timestep_spacing,
    }
    if config.sampler == "dpm":
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        # Its "thresholding" with a maximum value of 1 is the clipping of the other samplers.
        solver = DPMSolverMultistepScheduler(**common, thresholding=config.clip_sample, sample_max_value=1.0)
        if config.resolved_timestep_spacing == "trailing":
            solver.set_timesteps(timesteps=inference_timesteps(config))
        else:
            solver.set_timesteps(config.num_inference_steps)
        return solver
    scheduler: DDPMScheduler | DDIMScheduler
    if config.sampler == "ddim":
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler = DDIMScheduler(**common, clip_sample=config.clip_sample, set_alpha_to_one=True, steps_offset=0)
    else:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        scheduler = DDPMScheduler(**common, clip_sample=config.clip_sample, variance_type="fixed_small")
    scheduler.set_timesteps(config.num_inference_steps)
    return scheduler


@dataclass(frozen=True)
class Step:
    """Coefficients of one denoising step, see the top of this file. `clip` bounds the clean trajectory to [-1, 1]."""

    timestep: int
    clean_from_x: float
    clean_from_out: float
    x: float
    out: float
    clean: float
    prev_clean: float
    noise: float
    clip: bool


def make_denoising_steps(config: PolicyConfig) -> list[Step]:
    """The denoising steps of `config`, from pure noise to the clean trajectory."""
    if config.sampler == "dpm":
        return _dpm_steps(make_scheduler(config))
    timesteps = inference_timesteps(config)
    stride = config.num_train_timesteps // config.num_inference_steps
    alphas = alphas_cumprod(config).double().numpy()
    steps = []
    for i, k in enumerate(timesteps):
        next_timestep = timesteps[i + 1] if i + 1 < len(timesteps) else -1
        if config.sampler == "ddim":
            next_timestep = k - stride  # as in diffusers, whatever the spacing
        alpha, alpha_next = float(alphas[k]), float(alphas[next_timestep]) if next_timestep >= 0 else 1.0
        clean_from_x, clean_from_out = _clean_coefficients(config.prediction_type, alpha)
        x = out = noise = 0.0
        if config.sampler == "ddim":
            clean = alpha_next**0.5
            epsilon = (1.0 - alpha_next) ** 0.5
            if config.prediction_type == "epsilon":
                out = epsilon
            else:
                x, out = epsilon / (1.0 - alpha) ** 0.5, -epsilon * (alpha / (1.0 - alpha)) ** 0.5
        else:
            ratio = alpha / alpha_next
            clean = alpha_next**0.5 * (1.0 - ratio) / (1.0 - alpha)
            x = ratio**0.5 * (1.0 - alpha_next) / (1.0 - alpha)
            noise = max((1.0 - alpha_next) / (1.0 - alpha) * (1.0 - ratio), 1e-20) ** 0.5 if k > 0 else 0.0
        steps.append(Step(k, clean_from_x, clean_from_out, x, out, clean, 0.0, noise, config.clip_sample))
    return steps


def _clean_coefficients(prediction_type: str, alpha: float) -> tuple[float, float]:
    """x_0 as a linear combination of x_k and the network's output."""
    if prediction_type == "epsilon":
        return alpha**-0.5, -(((1.0 - alpha) / alpha) ** 0.5)
    return 0.0, 1.0


def _dpm_steps(scheduler: Any) -> list[Step]:
    config = scheduler.config
    timesteps, ratios = [int(k) for k in scheduler.timesteps], scheduler.sigmas.double().numpy()
    alphas = 1.0 / np.sqrt(ratios**2 + 1.0)  # square roots of the cumulative products
    sigmas = ratios * alphas
    with np.errstate(divide="ignore"):
        lambdas = np.log(alphas) - np.log(sigmas)  # infinite at the end, where sigma is 0
    steps = []
    n = len(timesteps)
    for i, k in enumerate(timesteps):
        clean_from_x, clean_from_out = _clean_coefficients(config.prediction_type, float(alphas[i] ** 2))
        h = lambdas[i + 1] - lambdas[i]
        clean, prev_clean = -alphas[i + 1] * np.expm1(-h), 0.0
        if 0 < i < n - 1:  # the last step is first order: sigma is 0 at its end
            ratio = (lambdas[i] - lambdas[i - 1]) / h
            prev_clean = -0.5 * clean / ratio
            clean -= prev_clean
        x = float(sigmas[i + 1] / sigmas[i])
        steps.append(
            Step(k, clean_from_x, clean_from_out, x, 0.0, float(clean), float(prev_clean), 0.0, config.thresholding)
        )
    return steps


def sample_noise(n_tensors: int, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise (n_tensors, *shape). Sampled on the CPU, so that a seed means the same on every device."""
    return torch.stack([torch.randn(shape, generator=generator) for _ in range(n_tensors)])


@torch.no_grad()
def sample(
    denoise: DenoiseFn, noise: Tensor, steps: Sequence[Step], inpainting: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Denoises a trajectory (B, T, D). `noise` (n, B, T, D) holds the initial one, which is pure noise, and then the
    noise of each step that has any. `inpainting` is (mask, values), broadcastable to the trajectory: before every step
    and at the end, it takes the values where the mask is True.
    """
    x, *step_noise = noise
    unused_noise = iter(step_noise)
    prev_clean = x
    for i, step in enumerate(steps):
        x = x if inpainting is None else torch.where(*inpainting, x)
        out = denoise(x, i)
        clean = x * step.clean_from_x + out * step.clean_from_out
        clean = clean.clamp(-1.0, 1.0) if step.clip else clean
        x_next = clean * step.clean
        if step.x:
            x_next = x_next.add(x, alpha=step.x)
        if step.out:
            x_next = x_next.add(out, alpha=step.out)
        if step.prev_clean:
            x_next = x_next.add(prev_clean, alpha=step.prev_clean)
        if step.noise:
            x_next = x_next.add(next(unused_noise), alpha=step.noise)
        x, prev_clean = x_next, clean
    return x if inpainting is None else torch.where(*inpainting, x)
