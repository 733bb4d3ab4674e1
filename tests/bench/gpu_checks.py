"""Part 1 of gpu.py: is `ddp` correct on the device?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_kit import Kit

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.inference.engine import make_predict_fn
from ddp_cli.training.trainer import Trainer

CPU = torch.device("cpu")


def losses(trainer: Trainer, n_steps: int) -> list[float]:
    return [float(trainer.step()["total"]) for _ in range(n_steps)]


def largest_difference(a: list[float], b: list[float]) -> float:
    """Relative to the larger of each pair."""
    return max(abs(x - y) / max(abs(x), abs(y)) for x, y in zip(a, b, strict=True))


def check_correctness(kit: Kit) -> None:
    """Part 1."""
    n = 8  # a graph is recorded in the fourth step
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True

    def run(
        device: torch.device = kit.device, graph: bool = False, precision: str = "fp32", **settings: Any
    ) -> Trainer:
        return kit.trainer(device, graph, precision=precision, batch_size=8, lr=1e-3, warmup_steps=0, **settings)

    def compare(name: str, limit: float, reference: list[float], **settings: Any) -> None:
        kit.try_check(name, lambda: largest_difference(losses(run(**settings), n), reference), limit)

    on_cpu, with_dropout = losses(run(CPU), n), losses(run(p_drop_attn=0.3), n)
    compare("losses of 8 steps in fp32, relative to the CPU", 1e-2, on_cpu)
    compare("the same in bf16", 0.1, on_cpu, precision="bf16")
    compare("the same with torch.compile", 1e-2, on_cpu, compile=True)
    compare("the same as a CUDA graph", 1e-2, on_cpu, graph=True)
    compare("the same as a CUDA graph in bf16", 0.1, on_cpu, graph=True, precision="bf16")
    compare("with dropout, CUDA graph against none", 1e-3, with_dropout, graph=True, p_drop_attn=0.3)
    kit.try_check("with dropout, resumed after half of the steps", lambda: resume_difference(run, with_dropout), 1e-3)
    check_actions(kit)


def resume_difference(run: Callable[..., Trainer], reference: list[float]) -> float:
    """Of the losses of a run that is resumed in the middle."""
    half = len(reference) // 2
    first, second = (run(graph=True, p_drop_attn=0.3) for _ in range(2))
    losses(first, half)
    second.load_state(first.state())
    return largest_difference(losses(second, half), reference[half:])


def check_actions(kit: Kit) -> None:
    """Chunks of the engines that the device has, against the network on the CPU, from the same initial noise."""
    config = kit.config(sampler="ddim", num_inference_steps=10).policy
    torch.manual_seed(0)
    policy = DiffusionPolicy(config).eval()
    obs = kit.observations(policy)
    expected = policy.predict_action(obs, torch.Generator().manual_seed(0))["action"]
    policy.to(kit.device)
    for engine in ("torch", "compile"):

        def difference(engine: str = engine) -> float:
            predict = make_predict_fn(policy, engine)
            on_device = {key: x.to(kit.device) for key, x in obs.items()}
            for _ in range(3):
                action = predict(on_device, torch.Generator().manual_seed(0))
            return float((action.cpu() - expected).abs().max())

        with torch.no_grad():
            kit.try_check(f"actions of DDIM in 10 steps, engine {engine}", difference, 1e-3)
