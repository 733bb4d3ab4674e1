"""Latency of the denoising chain against the plain loop: `python tests/bench/sampling.py [--threads 2]`.

The paper policy from state with random weights: its encoder only scales numbers. The plain loop is
plain.py's network (PyTorch's `nn.TransformerDecoder`) under diffusers' own scheduler. Rounds go by turns.
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
from ddp_cli.inference.agent import make_predict_fn
from ddp_cli.presets import train_config

CHAINS = [("ddpm", 100), ("ddim", 16), ("ddim", 10), ("dpm", 10), ("ddim", 4), ("ddim", 1)]


def plain_loop(batch: int) -> Callable[[], torch.Tensor]:
    """The published way: all of the network, and the scheduler's own step, 100 times."""
    policy = PlainPolicy(train_config("square", "image", "paper")).eval()
    scheduler = make_scheduler(PolicyConfig())
    cond = torch.randn(batch, 2, policy.cond_emb.in_features)

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, 10, 7, generator=generator)
        scheduler.set_timesteps(100)
        for k in scheduler.timesteps:
            x = scheduler.step(policy.denoise(x, k.expand(batch), cond), k, x, generator=generator).prev_sample
        return x

    return run


def chain(sampler: str, steps: int, batch: int, engine: str) -> Callable[[], torch.Tensor]:
    """`ddp`'s chain; `network` is that without an engine."""
    torch.manual_seed(0)
    config = PolicyConfig(obs="state", sampler=sampler, num_inference_steps=steps)
    policy = DiffusionPolicy(config).eval()
    predict = make_predict_fn(policy, engine) if engine != "network" else None
    obs = {key: torch.randn(batch, 2, width) for key, width in config.low_dim.items()}

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
    for batch in args.batch:
        ways = {("plain loop, ddpm 100", ""): plain_loop(batch)}
        for sampler, steps in CHAINS:
            for engine in ("torch", "onnx"):
                ways[f"{sampler} {steps}", engine] = chain(sampler, steps, batch, engine)
        exact = [chain("ddpm", 100, batch, engine)() for engine in ("network", "torch", "onnx")]
        off = max(float((x - exact[0]).abs().max()) for x in exact[1:])
        times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
        for i in range(args.rounds + 1):
            for way, run in ways.items():
                started = time.perf_counter()
                run()
                if i:  # the first is a warm-up
                    times[way].append((time.perf_counter() - started) * 1000.0)
        plain = float(np.median(times["plain loop, ddpm 100", ""]))
        print(f"batch {batch}: ddpm 100 differs from the network by at most {off:.1e}")
        for (name, engine), found in times.items():
            p50, p95 = np.percentile(found, (50, 95))
            print(f"  {name:22} {engine:6} {p50:8.1f} {p95:8.1f}   {plain / p50:6.1f} times as fast")


if __name__ == "__main__":
    main()
