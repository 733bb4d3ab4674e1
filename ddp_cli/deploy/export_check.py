"""Checks an exported policy against its checkpoint: predicted actions, closed-loop episodes, latency.

Shapes: B batch, To n_obs_steps, H and W image size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.deploy.exported_policy import ExportedAgent, sample_torch_noise
from ddp_cli.deploy.runtime import Policy, PolicyError
from ddp_cli.errors import SimulatorError
from ddp_cli.evaluation.rollout import Agent, run_episode
from ddp_cli.inference.agent import PolicyAgent
from ddp_cli.sim.simulator import Simulator

TIMED_CHUNKS = 40  # after one that warms up


def compare_actions(policy: DiffusionPolicy, exported: Policy, obs: dict[str, Tensor]) -> float:
    """Largest difference between the actions of both, from observations {key: (B, To, ...)} and the same noise.

    Infinite if the exported policy predicts actions that are not finite (possible in lower precision).
    """
    low, high = (np.array([np.nan if x is None else x for x in exported.spec["limits"][k]]) for k in ("low", "high"))
    largest = 0.0
    for i in range(len(next(iter(obs.values())))):
        sample = {key: value[i : i + 1] for key, value in obs.items()}
        expected = policy.predict_action(sample, torch.Generator().manual_seed(i))["action"][0].numpy()
        expected = np.fmin(np.fmax(expected, low), high)
        noise = sample_torch_noise(exported, torch.Generator().manual_seed(i))
        try:
            actions = exported.act(_to_camera_layout(obs, i), noise)
        except PolicyError:
            return math.inf
        largest = max(largest, float(np.abs(actions - expected).max()))
    return largest


def _to_camera_layout(obs: dict[str, Tensor], i: int) -> dict[str, np.ndarray[Any, Any]]:
    """Sample `i` of a batch as an exported policy takes it: images (To, 3, H, W) -> (To, H, W, 3)."""
    sample = {key: value[i] for key, value in obs.items()}
    return {key: (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy() for key, x in sample.items()}


def measure_latency(exported: Policy, obs: dict[str, Tensor]) -> dict[str, float]:
    """Latency of a chunk on this machine, with one thread: median and 95th percentile [ms]."""
    sample = _to_camera_layout(obs, 0)
    noise = exported.sample_noise(np.random.default_rng(0))
    latencies = []
    for _ in range(TIMED_CHUNKS + 1):
        start = time.perf_counter()
        exported.act(sample, noise)
        latencies.append((time.perf_counter() - start) * 1e3)
    return {"p50_ms": float(np.percentile(latencies[1:], 50)), "p95_ms": float(np.percentile(latencies[1:], 95))}


def compare_episodes(
    policy: DiffusionPolicy, exported: Policy, render: str, seeds: Sequence[int], on_episode: Callable[[int], None]
) -> dict[str, Any]:
    """Run both policies from the same initial states with the same noise: their results, and the seeds that differ.

    Contacts amplify rounding differences, so a few outcomes may differ. Without a simulator, the reason it is missing.
    """
    try:
        sim = Simulator(policy.config.task, render, policy.config.actions)
    except SimulatorError as e:
        return {"not_run": e.message}
    agents: dict[str, Agent] = {"checkpoint": PolicyAgent(policy), "exported": ExportedAgent(exported)}
    episodes: list[dict[str, Any]] = []
    for seed in seeds:
        results = {name: run_episode(sim, agent, seed) for name, agent in agents.items()}
        outcomes = {name: {"success": r.success, "steps": r.steps} for name, r in results.items()}
        episodes.append({"seed": seed} | outcomes)
        on_episode(len(episodes))
    sim.close()
    differing = [e["seed"] for e in episodes if e["checkpoint"]["success"] != e["exported"]["success"]]
    return {"episodes": episodes, "differing": differing}


def summary_lines(proof: dict[str, Any]) -> list[str]:
    """The checks as text, one line per result."""
    lines = [
        f"{name}: largest difference from torch {value:.1e} (tolerance {proof['tolerance']:.0e})"
        for name, value in proof["differences"].items()
    ]
    comparison = proof.get("episodes", {})
    if "not_run" in comparison:
        lines.append(f"episodes were not compared: {comparison['not_run']}")
    elif comparison.get("episodes"):
        episodes, differing = comparison["episodes"], comparison["differing"]
        checkpoint, exported = (sum(e[name]["success"] for e in episodes) for name in ("checkpoint", "exported"))
        outcomes = f"outcomes differ for seeds {differing}" if differing else "all outcomes agree"
        lines.append(
            f"success in {len(episodes)} episodes: checkpoint {checkpoint}, exported policy {exported}; {outcomes}"
        )
    if "latency" in proof:
        latency = proof["latency"]
        lines.append(
            f"latency per chunk: {latency['p50_ms']:.1f} ms (p95 {latency['p95_ms']:.1f} ms), one CPU thread of the "
            "exporting machine"
        )
    return lines
