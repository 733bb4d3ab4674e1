"""Forward and reverse diffusion of action chunks; the only user of diffusers' schedulers.

Symbols of DDPM (Ho et al. 2020): x_k the trajectory after k noising steps, epsilon its noise, alpha the
cumulated product (there: alpha bar). diffusers' schedulers define the samplers; here each of their steps is
reduced to numbers that are computed once:

    x_0'   = clip(x_from x + out_from out)           what the network's output says of the clean trajectory
    x_next = keep x + direct out + clean x_0' + before x_0'(of the step before) + noise z

Shapes: B batch, T steps of the trajectory, D its width, n steps of the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from ddp_cli.config import PolicyConfig

Scheduler = DDPMScheduler | DDIMScheduler | DPMSolverMultistepScheduler


def make_noising(config: PolicyConfig) -> DDPMScheduler:
    """The forward process: `add_noise` and `alphas_cumprod`."""
    return DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
    )


def make_scheduler(config: PolicyConfig) -> Scheduler:
    """The noise schedule of `config` with its sampler and its timesteps: DDPM (section 3.2), DDIM (Song et al.
    2021, eta 0) or DPM-Solver++ (Lu et al. 2022, 2M). All clip the clean trajectory if `clip_sample`.
    """
    common: dict[str, Any] = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction_type,
        "timestep_spacing": config.spacing,
    }
    scheduler: Scheduler
    if config.sampler == "dpm":
        # Its "thresholding" with a largest value of 1 is the clipping of the others.
        scheduler = DPMSolverMultistepScheduler(**common, thresholding=config.clip_sample, sample_max_value=1.0)
    elif config.sampler == "ddim":
        scheduler = DDIMScheduler(**common, clip_sample=config.clip_sample, set_alpha_to_one=True, steps_offset=0)
    else:
        scheduler = DDPMScheduler(**common, clip_sample=config.clip_sample, variance_type="fixed_small")
    scheduler.set_timesteps(config.num_inference_steps)
    return scheduler


@dataclass(frozen=True)
class Step:
    """The numbers of one step, see the top of this file. `clip` bounds x_0' to [-1, 1]."""

    timestep: int
    x_from: float
    out_from: float
    keep: float
    direct: float
    clean: float
    before: float
    noise: float
    clip: bool


def denoising_steps(config: PolicyConfig) -> list[Step]:
    """The steps of the chain of `config`, from noise to clean."""
    scheduler = make_scheduler(config)
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        return _dpm_steps(scheduler)
    timesteps = [int(k) for k in scheduler.timesteps]
    stride = config.num_train_timesteps // config.num_inference_steps
    alphas = scheduler.alphas_cumprod.double().numpy()
    steps = []
    for i, k in enumerate(timesteps):
        if isinstance(scheduler, DDIMScheduler):
            following = k - stride  # as diffusers has it, whatever the spacing
        else:
            following = timesteps[i + 1] if i + 1 < len(timesteps) else -1
        alpha, alpha_next = float(alphas[k]), float(alphas[following]) if following >= 0 else 1.0
        x_from, out_from = _clean_from(config.prediction_type, alpha)
        keep = direct = noise = 0.0
        if isinstance(scheduler, DDIMScheduler):
            clean = alpha_next**0.5
            toward = (1.0 - alpha_next) ** 0.5  # times epsilon
            if config.prediction_type == "epsilon":
                direct = toward
            else:
                keep, direct = toward / (1.0 - alpha) ** 0.5, -toward * (alpha / (1.0 - alpha)) ** 0.5
        else:
            ratio = alpha / alpha_next
            clean = alpha_next**0.5 * (1.0 - ratio) / (1.0 - alpha)
            keep = ratio**0.5 * (1.0 - alpha_next) / (1.0 - alpha)
            noise = max((1.0 - alpha_next) / (1.0 - alpha) * (1.0 - ratio), 1e-20) ** 0.5 if k > 0 else 0.0
        steps.append(Step(k, x_from, out_from, keep, direct, clean, 0.0, noise, config.clip_sample))
    return steps


def _clean_from(prediction_type: str, alpha: float) -> tuple[float, float]:
    """x_0 as a combination of x_k and the network's output."""
    if prediction_type == "epsilon":
        return alpha**-0.5, -(((1.0 - alpha) / alpha) ** 0.5)
    return 0.0, 1.0


def _dpm_steps(scheduler: DPMSolverMultistepScheduler) -> list[Step]:
    config: Any = scheduler.config
    timesteps, ratios = [int(k) for k in scheduler.timesteps], scheduler.sigmas.double().numpy()
    alphas = 1.0 / np.sqrt(ratios**2 + 1.0)  # square roots of the cumulated products
    sigmas = ratios * alphas
    with np.errstate(divide="ignore"):
        lambdas = np.log(alphas) - np.log(sigmas)  # infinite at the end, where no noise is left
    steps = []
    n = len(timesteps)
    for i, k in enumerate(timesteps):
        x_from, out_from = _clean_from(config.prediction_type, float(alphas[i] ** 2))
        h = lambdas[i + 1] - lambdas[i]
        clean, before = -alphas[i + 1] * np.expm1(-h), 0.0
        if 0 < i < n - 1:  # the last step is of first order: it ends without noise
            ratio = (lambdas[i] - lambdas[i - 1]) / h
            before = -0.5 * clean / ratio
            clean -= before
        keep = float(sigmas[i + 1] / sigmas[i])
        steps.append(Step(k, x_from, out_from, keep, 0.0, float(clean), float(before), 0.0, config.thresholding))
    return steps


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, int], Tensor],
    x: Tensor,
    steps: Sequence[Step],
    generator: torch.Generator | None,
    given: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Runs the chain from pure noise `x` (B, T, D) to a clean trajectory of the same shape.

    `denoise(x, i)` is the network in step i of `steps`; the generator is drawn from once per step that adds
    noise. `given` is (mask, values), both of the shape of x: what is known (inpainting) is put in before
    every step and at the end.
    """
    previous = x
    for i, step in enumerate(steps):
        x = x if given is None else torch.where(*given, x)
        out = denoise(x, i)
        clean = x * step.x_from + out * step.out_from
        clean = clean.clamp(-1.0, 1.0) if step.clip else clean
        following = clean * step.clean
        if step.keep:
            following = following.add(x, alpha=step.keep)
        if step.direct:
            following = following.add(out, alpha=step.direct)
        if step.before:
            following = following.add(previous, alpha=step.before)
        if step.noise:
            z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            following = following.add(z, alpha=step.noise)
        x, previous = following, clean
    return x if given is None else torch.where(*given, x)
