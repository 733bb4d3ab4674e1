"""Latency of the denoising loop against a plain loop: `python tests/bench/sampling.py [--threads 2]`.

The policy is the paper preset with state observations and random weights, so encoding the observations only normalizes
numbers. The plain loop is the network of plain.py (PyTorch's `nn.TransformerDecoder`) under diffusers' scheduler. Every
round runs all variants once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from plain import PlainPolicy

from ddp_cli.config import PolicyConfig
from ddp_cli.core.diffusion import make_scheduler
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.inference.engine import make_predict_fn
from ddp_cli.presets import train_config

SAMPLERS = [("ddpm", 100), ("ddim", 16), ("ddim", 10), ("dpm", 10), ("ddim", 4), ("ddim", 1)]
"""(sampler, number of denoising steps)."""


def make_plain_loop(batch_size: int) -> Callable[[], torch.Tensor]:
    """The published loop: the whole network and the scheduler's own step, 100 times."""
    policy = PlainPolicy(train_config("square", "image", "paper")).eval()
    scheduler = make_scheduler(PolicyConfig())
    cond = torch.randn(batch_size, 2, policy.cond_emb.in_features)

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch_size, 10, 7, generator=generator)
        scheduler.set_timesteps(100)
        for k in scheduler.timesteps:
            x = scheduler.step(policy.denoise(x, k.expand(batch_size), cond), k, x, generator=generator).prev_sample
        return x

    return run


def make_ddp_loop(sampler: str, steps: int, batch_size: int, engine: str) -> Callable[[], torch.Tensor]:
    """The denoising loop of `ddp`, run by `engine`, or by the unmodified network ("network")."""
    torch.manual_seed(0)
    config = PolicyConfig(obs="state", sampler=sampler, num_inference_steps=steps)
    policy = DiffusionPolicy(config).eval()
    predict = make_predict_fn(policy, engine) if engine != "network" else None
    obs = {key: torch.randn(batch_size, 2, width) for key, width in config.low_dim.items()}

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return predict(obs, generator) if predict else policy.predict_action(obs, generator)["action"]

    return run


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds: p50 and p95 [ms]")
    for batch_size in args.batch:
        variants = {("plain loop, ddpm 100", ""): make_plain_loop(batch_size)}
        for sampler, steps in SAMPLERS:
            for engine in ("torch", "onnx"):
                variants[f"{sampler} {steps}", engine] = make_ddp_loop(sampler, steps, batch_size, engine)
        expected, *outputs = [
            make_ddp_loop("ddpm", 100, batch_size, engine)() for engine in ("network", "torch", "onnx")
        ]
        max_error = max(float((x - expected).abs().max()) for x in outputs)
        latencies: dict[tuple[str, str], list[float]] = {variant: [] for variant in variants}
        for i in range(args.rounds + 1):
            for variant, run in variants.items():
                start = time.perf_counter()
                run()
                if i:  # the first round is a warm-up
                    latencies[variant].append((time.perf_counter() - start) * 1000.0)
        plain = float(np.median(latencies["plain loop, ddpm 100", ""]))
        print(f"batch size {batch_size}: with ddpm 100, engines differ from the network by at most {max_error:.1e}")
        for (name, engine), milliseconds in latencies.items():
            p50, p95 = np.percentile(milliseconds, (50, 95))
            print(f"  {name:22} {engine:6} {p50:8.1f} {p95:8.1f}   {plain / p50:6.1f} times as fast")


if __name__ == "__main__":
    main()
