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


def weight_difference(a: Trainer, b: Trainer) -> float:
    pairs = zip(a.policy.parameters(), b.policy.parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


def check_correctness(kit: Kit) -> None:
    """Part 1."""
    n = 5
    reference = losses(kit.trainer(CPU, precision="fp32", batch_size=8), n)

    def compare(**settings: Any) -> Callable[[], float]:
        return lambda: largest_difference(losses(kit.trainer(kit.device, batch_size=8, **settings), n), reference)

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    kit.try_check("losses of 5 steps in fp32, relative to the CPU", compare(precision="fp32"), 1e-3)
    kit.try_check("the same in bf16", compare(precision="bf16"), 0.05)
    kit.try_check("the same with torch.compile", compare(precision="fp32", compile=True), 1e-3)
    kit.try_check("weights after resuming, largest difference", lambda: resume_difference(kit), 1e-6)
    check_actions(kit)


def resume_difference(kit: Kit) -> float:
    whole, first, second = (kit.trainer(kit.device, precision="fp32", batch_size=8) for _ in range(3))
    losses(whole, 4)
    losses(first, 2)
    second.load_state(first.state())
    losses(second, 2)
    return weight_difference(whole, second)


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
            for _ in range(3):  # CUDA graphs are recorded in the second call
                action = predict(on_device, torch.Generator().manual_seed(0))
            return float((action.cpu() - expected).abs().max())

        with torch.no_grad():
            kit.try_check(f"actions of DDIM in 10 steps, engine {engine}", difference, 1e-3)
