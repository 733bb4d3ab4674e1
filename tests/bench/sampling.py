"""Time per action chunk of the paper policy against plain loops: `python tests/bench/sampling.py [--obs image]`.

From state, encoding the observations only normalizes numbers, so that this is the denoising loop alone; from images
both ResNets run as well. Weights are random. The plain loop is the network of plain.py (PyTorch's
`nn.TransformerDecoder`) under diffusers' scheduler. Every round runs all variants once. With `--load`, `ddp eval` runs
on the same cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from background_load import background_load
from plain import PlainPolicy

from ddp_cli.core.diffusion import make_scheduler
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.inference.engine import make_predict_fn
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.presets import train_config

SAMPLERS = [("ddpm", 100), ("ddim", 16), ("ddim", 10), ("dpm", 10), ("ddim", 4), ("ddim", 1)]
"""(sampler, number of denoising steps)."""

PLAIN_SAMPLERS = [("ddpm", 100), ("ddim", 10)]

PLAIN = "plain"

Variant = tuple[str, str]
"""Sampler with its number of steps, and what runs it: an engine, or PLAIN."""


def make_plain_loop(sampler: str, steps: int, obs: str, batch_size: int) -> Callable[[], torch.Tensor]:
    """The published loop: encoders, and then the whole network and the scheduler's own step at every step."""
    config = train_config("square", "image", "paper")
    policy = PlainPolicy(config).eval()
    scheduler = make_scheduler(PolicyConfig(sampler=sampler, num_inference_steps=steps))
    images = torch.rand(2 * batch_size, 3, *config.policy.crop_shape)
    cond = torch.randn(batch_size, 2, policy.cond_emb.in_features)
    vectors = cond[..., 64 * len(policy.encoders) :]

    def run() -> torch.Tensor:
        features = cond
        if obs == "image":
            encoded = [encoder(images).reshape(batch_size, 2, 64) for encoder in policy.encoders.values()]
            features = torch.cat([*encoded, vectors], -1)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch_size, 10, 7, generator=generator)
        scheduler.set_timesteps(steps)
        for k in scheduler.timesteps:
            prediction = policy.denoise(x, k.expand(batch_size), features)
            x = scheduler.step(prediction, k, x, generator=generator).prev_sample
        return x

    return run


def make_ddp_loop(sampler: str, steps: int, obs: str, batch_size: int, engine: str) -> Callable[[], torch.Tensor]:
    """The policy of `ddp`, run by `engine`, or by the unmodified network ("network")."""
    torch.manual_seed(0)
    config = PolicyConfig(obs=obs, sampler=sampler, num_inference_steps=steps)
    policy = DiffusionPolicy(config).eval()
    predict = make_predict_fn(policy, engine) if engine != "network" else None
    observations = {key: torch.randn(batch_size, 2, width) for key, width in config.low_dim.items()}
    for key, camera in config.cameras.items():
        shape = (batch_size, 2, camera.channels, camera.height, camera.width)
        observations[key] = torch.randint(0, 256, shape, dtype=torch.uint8)

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return predict(observations, generator) if predict else policy.predict_action(observations, generator)["action"]

    return run


def measure(variants: dict[Variant, Callable[[], torch.Tensor]], rounds: int) -> dict[Variant, np.ndarray]:
    """p50 and p95 of each variant [ms]."""
    latencies: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for i in range(rounds + 1):
        for variant, run in variants.items():
            start = time.perf_counter()
            run()
            if i:  # the first round is a warm-up
                latencies[variant].append((time.perf_counter() - start) * 1000.0)
    return {variant: np.percentile(values, (50, 95)) for variant, values in latencies.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--obs", choices=["state", "image"], default="state")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--load", action="store_true", help="measure beside `ddp eval` on all cores")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.obs}, {args.threads} threads, {args.rounds} rounds: p50 and p95 [ms]")
    for batch_size in args.batch:
        case = (args.obs, batch_size)
        expected, *outputs = [make_ddp_loop("ddpm", 100, *case, engine)() for engine in ("network", "torch", "onnx")]
        max_error = max(float((x - expected).abs().max()) for x in outputs)
        print(f"batch size {batch_size}: with ddpm 100, engines differ from the network by at most {max_error:.1e}")
        variants = {(f"{name} {steps}", PLAIN): make_plain_loop(name, steps, *case) for name, steps in PLAIN_SAMPLERS}
        for name, steps in SAMPLERS:
            for engine in ("torch", "onnx"):
                variants[f"{name} {steps}", engine] = make_ddp_loop(name, steps, *case, engine)
        with background_load(args.load):
            times = measure(variants, args.rounds)
        for (name, engine), (p50, p95) in times.items():
            ratios = f"{times['ddpm 100', PLAIN][0] / p50:6.1f} times plain ddpm 100"
            if name != "ddpm 100" and (name, PLAIN) in times:
                ratios += f", {times[name, PLAIN][0] / p50:.1f} times plain {name}"
            print(f"  {name:10} {engine:6} {p50:8.1f} {p95:8.1f}   {ratios}", flush=True)


if __name__ == "__main__":
    main()
