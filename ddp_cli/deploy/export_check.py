"""What is shown of an export before it is called done: the same numbers, the same episodes, the time of a chunk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.deploy.exported_policy import ExportedAgent, draw_torch_noise
from ddp_cli.deploy.runtime import Policy, PolicyError
from ddp_cli.errors import SimulatorError
from ddp_cli.evaluation.rollout import Agent, run_episode
from ddp_cli.inference.agent import PolicyAgent
from ddp_cli.sim.simulator import Simulator

REPEATS = 40  # chunks that are timed, after one that is not


def action_difference(policy: DiffusionPolicy, exported: Policy, obs: dict[str, Tensor]) -> float:
    """Largest difference of what both predict from observations {key: (B, To, ...)}, given the same noise."""
    worst = 0.0
    limits = [np.array([np.nan if x is None else x for x in exported.spec["limits"][k]]) for k in ("low", "high")]
    for i in range(len(next(iter(obs.values())))):
        one = {key: value[i : i + 1] for key, value in obs.items()}
        expected = policy.predict_action(one, torch.Generator().manual_seed(i))["action"][0].numpy()
        seen = {key: _as_observed(value[0]) for key, value in one.items()}
        try:
            found = exported.act(seen, draw_torch_noise(exported, torch.Generator().manual_seed(i)))
        except PolicyError:  # not finite: less precise numbers end earlier
            return math.inf
        worst = max(worst, float(np.abs(found - np.fmin(np.fmax(expected, limits[0]), limits[1])).max()))
    return worst


def _as_observed(value: Tensor) -> np.ndarray[Any, Any]:
    """Pictures (To, 3, H, W) as cameras give them."""
    return (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()


def latency(exported: Policy, obs: dict[str, Tensor]) -> dict[str, float]:
    """How long one chunk takes, in one thread of this machine: median and 95th percentile [ms]."""
    seen = {key: _as_observed(value[0]) for key, value in obs.items()}
    noise = exported.noise(np.random.default_rng(0))
    times = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        exported.act(seen, noise)
        times.append((time.perf_counter() - begun) * 1e3)
    return {"p50_ms": float(np.percentile(times[1:], 50)), "p95_ms": float(np.percentile(times[1:], 95))}


def episodes(
    policy: DiffusionPolicy, exported: Policy, render: str, seeds: Sequence[int], progress: Callable[[int], None]
) -> dict[str, Any]:
    """Both policies on the same starts with the same noise: what came of each, and the starts that ended otherwise.

    Contacts enlarge differences in the last digit, so a few may. Without a simulator it says why.
    """
    try:
        sim = Simulator(policy.config.task, render, policy.config.actions)
    except SimulatorError as e:
        return {"not_run": e.message}
    agents: dict[str, Agent] = {"checkpoint": PolicyAgent(policy), "exported": ExportedAgent(exported)}
    found: list[dict[str, Any]] = []
    for done, seed in enumerate(seeds):
        ends = {name: asdict(run_episode(sim, agent, seed)) for name, agent in agents.items()}
        kept = ("success", "steps")
        found.append({"seed": seed} | {name: {key: end[key] for key in kept} for name, end in ends.items()})
        progress(done + 1)
    sim.close()
    differing = [e["seed"] for e in found if e["checkpoint"]["success"] != e["exported"]["success"]]
    return {"episodes": found, "differing": differing}


def in_words(proof: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [
        f"{name}: largest difference from torch {value:.1e} (limit {proof['tolerance']:.0e})"
        for name, value in proof["differences"].items()
    ]
    ran = proof.get("episodes", {})
    if "not_run" in ran:
        lines.append(f"episodes were not compared: {ran['not_run']}")
    elif ran.get("episodes"):
        count, differing = len(ran["episodes"]), ran["differing"]
        wins = {name: sum(e[name]["success"] for e in ran["episodes"]) for name in ("checkpoint", "exported")}
        ends = f"otherwise: starts {differing}" if differing else "none otherwise"
        lines.append(
            f"of {count} episodes the checkpoint succeeds in {wins['checkpoint']}, the exported policy in "
            f"{wins['exported']}, {ends}"
        )
    if "latency" in proof:
        times = proof["latency"]
        lines.append(
            f"a chunk takes {times['p50_ms']:.1f} ms (p95 {times['p95_ms']:.1f} ms), one thread of the CPU here"
        )
    return lines
