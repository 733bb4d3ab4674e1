from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddp_cli.config import PolicyConfig
from ddp_cli.core.diffusion import denoising_steps, make_scheduler, sample
from ddp_cli.errors import ConfigError

SAMPLERS = ["ddpm", "ddim", "dpm"]


def network(x: Tensor, k: int) -> Tensor:
    """Any function of the trajectory and the diffusion step; large enough that clipping matters, and smooth:
    rounding must not grow along the chain."""
    places = torch.linspace(-3.0, 3.0, x[0].numel()).view(x.shape[1:])
    return 1.2 * torch.sin(places + k / 7.0) + 0.1 * torch.tanh(x)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 10, 16, 33, 100])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_every_step_equals_that_of_diffusers(sampler: str, steps: int, spacing: str, prediction: str) -> None:
    settings = {"sampler": sampler, "num_inference_steps": steps, "timestep_spacing": spacing}
    if settings == {"sampler": "dpm", "num_inference_steps": 100, "timestep_spacing": "leading"}:
        with pytest.raises(ConfigError, match="dpm cannot take all steps"):
            PolicyConfig(**settings)
        return
    config = PolicyConfig(**settings, prediction_type=prediction)
    torch.manual_seed(0)
    start = torch.randn(2, 10, 7)
    scheduler, theirs = make_scheduler(config), []
    generator, x = torch.Generator().manual_seed(5), start
    for k in scheduler.timesteps:
        x = scheduler.step(network(x, int(k)), k, x, generator=generator, return_dict=False)[0]
        theirs.append(x)
    ours: list[Tensor] = []
    chain = denoising_steps(config)

    def denoise(x: Tensor, i: int) -> Tensor:
        ours.append(x)
        return network(x, chain[i].timestep)

    ours.append(sample(denoise, start, chain, torch.Generator().manual_seed(5)))
    assert [step.timestep for step in chain] == scheduler.timesteps.tolist()
    for mine, other in zip(ours[1:], theirs, strict=True):
        scale = float(other.abs().max().clamp_min(1.0))  # without clipping the first steps are large
        torch.testing.assert_close(mine / scale, other / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_clipping_too(sampler: str) -> None:
    config = PolicyConfig(sampler=sampler, num_inference_steps=20, clip_sample=False)
    assert not any(step.clip for step in denoising_steps(config))


@pytest.mark.parametrize(
    ("sampler", "steps", "first"),
    [("ddim", 1, 99), ("ddim", 9, 99), ("ddim", 10, 90), ("ddpm", 100, 99), ("dpm", 16, 99)],
)
def test_few_steps_begin_where_the_noise_is(sampler: str, steps: int, first: int) -> None:
    assert denoising_steps(PolicyConfig(sampler=sampler, num_inference_steps=steps))[0].timestep == first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_network_that_knows_the_truth_leads_to_it(sampler: str) -> None:
    config = PolicyConfig(sampler=sampler, num_inference_steps=8, prediction_type="sample")
    truth = torch.rand(1, 10, 7) * 2 - 1
    x = sample(lambda _x, _i: truth, torch.randn(1, 10, 7), denoising_steps(config), torch.Generator().manual_seed(0))
    torch.testing.assert_close(x, truth, atol=1e-3 if sampler != "ddim" else 0.2, rtol=0)
