from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddp_cli.core.diffusion import make_denoising_steps, make_scheduler, sample
from ddp_cli.core.noise_schedule import add_noise, alphas_cumprod
from ddp_cli.errors import ConfigError
from ddp_cli.policy_config import PolicyConfig

SAMPLERS = ["ddpm", "ddim", "dpm"]


def network(x: Tensor, k: int) -> Tensor:
    """A function of trajectory and diffusion step: large enough for clipping to matter, and smooth, so that rounding
    errors do not grow from step to step."""
    phases = torch.linspace(-3.0, 3.0, x[0].numel()).view(x.shape[1:])
    return 1.2 * torch.sin(phases + k / 7.0) + 0.1 * torch.tanh(x)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 10, 16, 33, 100])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_every_step_equals_that_of_diffusers(sampler: str, steps: int, spacing: str, prediction_type: str) -> None:
    settings = {"sampler": sampler, "num_inference_steps": steps, "timestep_spacing": spacing}
    if settings == {"sampler": "dpm", "num_inference_steps": 100, "timestep_spacing": "leading"}:
        with pytest.raises(ConfigError, match="dpm cannot use all timesteps"):
            PolicyConfig(**settings)
        return
    config = PolicyConfig(**settings, prediction_type=prediction_type)
    torch.manual_seed(0)
    noise = torch.randn(2, 10, 7)
    scheduler = make_scheduler(config)
    expected: list[Tensor] = []
    generator, x = torch.Generator().manual_seed(5), noise
    for k in scheduler.timesteps:
        x = scheduler.step(network(x, int(k)), k, x, generator=generator, return_dict=False)[0]
        expected.append(x)
    actual: list[Tensor] = []
    denoising_steps = make_denoising_steps(config)

    def denoise(x: Tensor, i: int) -> Tensor:
        actual.append(x)
        return network(x, denoising_steps[i].timestep)

    generator = torch.Generator().manual_seed(5)
    step_noise = [torch.randn(noise.shape, generator=generator) for step in denoising_steps if step.noise]
    actual.append(sample(denoise, torch.stack([noise, *step_noise]), denoising_steps))
    assert [step.timestep for step in denoising_steps] == scheduler.timesteps.tolist()
    for x, reference in zip(actual[1:], expected, strict=True):
        scale = float(reference.abs().max().clamp_min(1.0))  # without clipping the first steps are large
        torch.testing.assert_close(x / scale, reference / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clip_sample_can_be_disabled(sampler: str) -> None:
    config = PolicyConfig(sampler=sampler, num_inference_steps=20, clip_sample=False)
    assert not any(step.clip for step in make_denoising_steps(config))


@pytest.mark.parametrize(
    ("sampler", "steps", "first"),
    [("ddim", 1, 99), ("ddim", 9, 99), ("ddim", 10, 90), ("ddpm", 60, 99), ("ddpm", 100, 99), ("dpm", 16, 99)],
)
def test_sampling_starts_at_a_noisy_timestep(sampler: str, steps: int, first: int) -> None:
    assert make_denoising_steps(PolicyConfig(sampler=sampler, num_inference_steps=steps))[0].timestep == first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps_has_as_many_timesteps_of_the_training(sampler: str) -> None:
    """With 29 and some other numbers of steps, diffusers adds one at timestep -1."""
    for n in range(1, 101):
        timesteps = [s.timestep for s in make_denoising_steps(PolicyConfig(sampler=sampler, num_inference_steps=n))]
        assert len(timesteps) == n
        assert sorted(set(timesteps), reverse=True) == timesteps
        assert timesteps[0] >= 80
        assert timesteps[-1] >= 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_with_an_oracle_recovers_its_trajectory(sampler: str) -> None:
    config = PolicyConfig(sampler=sampler, num_inference_steps=8, prediction_type="sample")
    target = torch.rand(1, 10, 7) * 2 - 1
    x = sample(lambda _x, _i: target, torch.randn(9, 1, 10, 7), make_denoising_steps(config))
    torch.testing.assert_close(x, target, atol=1e-3 if sampler != "ddim" else 0.2, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainted_values_are_set_before_every_step_and_at_the_end(sampler: str) -> None:
    steps = make_denoising_steps(PolicyConfig(sampler=sampler, num_inference_steps=5))
    mask = torch.zeros(10, 7, dtype=torch.bool)
    mask[:2, 4:] = True
    values = torch.rand(2, 10, 7)
    inputs: list[Tensor] = []

    def denoise(x: Tensor, i: int) -> Tensor:
        inputs.append(x)
        return network(x, steps[i].timestep)

    x = sample(denoise, torch.randn(6, 2, 10, 7), steps, (mask, values))
    assert len(inputs) == 5
    for trajectory in (*inputs, x):
        assert torch.equal(trajectory[:, mask], values[:, mask])
        assert (trajectory[:, ~mask] != values[:, ~mask]).all()


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear", "scaled_linear"])
@pytest.mark.parametrize("timesteps", [2, 100, 1000])
def test_the_noise_schedule_is_that_of_diffusers(schedule: str, timesteps: int) -> None:
    config = PolicyConfig(beta_schedule=schedule, num_train_timesteps=timesteps, num_inference_steps=1)
    scheduler = make_scheduler(config)
    assert torch.equal(alphas_cumprod(config), scheduler.alphas_cumprod)
    trajectory, noise = torch.randn(2, 8, 10, 7)
    k = torch.randint(0, timesteps, (8,))
    expected = scheduler.add_noise(trajectory, noise, k)
    assert torch.equal(add_noise(trajectory, noise, alphas_cumprod(config)[k]), expected)


def test_a_policy_runs_and_has_a_loss_without_diffusers(tmp_path: Path) -> None:
    """Importing it takes longer than loading a policy; it imports torch._dynamo as well."""
    code = (
        "import sys; from ddp_cli.policy_config import PolicyConfig; from ddp_cli.core.policy import DiffusionPolicy\n"
        "from ddp_cli.inference.agent import PolicyAgent\n"
        "policy = DiffusionPolicy(PolicyConfig(obs='state', n_layer=1)); PolicyAgent(policy)\n"
        "import torch; obs = {key: torch.zeros(1, 2, n) for key, n in policy.config.low_dim.items()}\n"
        "policy.compute_loss({'obs': obs, 'action': torch.zeros(1, 10, 7)}).backward()\n"
        "print({'diffusers', 'torch._dynamo', 'torchvision', 'scipy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "set()"
