"""Forward and reverse diffusion of action chunks; the only user of diffusers' schedulers.

Symbols of DDPM (Ho et al. 2020): x_k the trajectory after k noising steps, epsilon its noise. Both
samplers take `num_steps` evenly spaced steps of the training chain, the last one at k = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from ddp_cli.config import PolicyConfig

Scheduler = DDPMScheduler | DDIMScheduler


def make_scheduler(config: PolicyConfig) -> Scheduler:
    """The noise schedule of `config` with its sampler (DDPM section 3.2; DDIM, Song et al. 2021, eta 0)."""
    common = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "clip_sample": config.clip_sample,
        "prediction_type": config.prediction_type,
    }
    if config.sampler == "ddim":
        return DDIMScheduler(**common, set_alpha_to_one=True, steps_offset=0)
    return DDPMScheduler(**common, variance_type="fixed_small")


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    scheduler: Scheduler,
    num_steps: int,
    generator: torch.Generator | None,
    given: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Runs the chain from pure noise `x` (B, T, D) to a clean trajectory of the same shape.

    `denoise(x, k)` is the network; the generator is drawn from once per step with k > 0 (DDPM only).
    `given` is (mask, values), both of the shape of x: what is known (inpainting) is put in before every
    step and at the end.
    """
    scheduler.set_timesteps(num_steps)
    for k in scheduler.timesteps:
        x = x if given is None else torch.where(*given, x)
        x = scheduler.step(denoise(x, k.to(x.device)), k, x, generator=generator, return_dict=False)[0]
    return x if given is None else torch.where(*given, x)
