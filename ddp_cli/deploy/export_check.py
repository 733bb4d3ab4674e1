"""Checks an exported policy against its checkpoint: predicted actions, closed-loop episodes, latency.

Shapes: B batch, To n_obs_steps, H and W image size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddp_cli.action_limits import ActionLimits
from ddp_cli.core.checkpoint import Meta
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.deploy.episode_picture import EpisodePicture, EpisodeStates
from ddp_cli.deploy.exported_folder import open_exported_policy
from ddp_cli.deploy.exported_policy import ExportedAgent, sample_torch_noise
from ddp_cli.deploy.runtime import Policy, PolicyError
from ddp_cli.errors import DdpError, SimulatorError
from ddp_cli.evaluation.rollout import Agent, clamp_chunk, run_episode
from ddp_cli.inference.agent import PolicyAgent
from ddp_cli.inference.policy_limits import action_limits
from ddp_cli.sim.simulator import Simulator

TOLERANCES: dict[str, float] = {"fp32": 1e-4, "fp16": 3e-2, "int8": 3e-1}
"""Largest accepted difference from torch in float32. Delta actions range from -1 to 1; actions of a wider range, such
as positions of servos from 0 to 4095, are compared as shares of half their range.
"""
TIMED_CHUNKS = 40  # after one that warms up
NOISE_WIDTHS = (1.0, 10.0, 100.0)  # standard deviations
ROUNDING = 1e-5  # largest change of an action that is within its limits, relative to it above 1
REPORT_HINT = "Report this as a bug."


def check_folder(
    folder: Path,
    policy: DiffusionPolicy,
    meta: Meta,
    obs: dict[str, Tensor],
    seeds: Sequence[int],
    proof: dict[str, Any],
    on_episode: Callable[[int], None],
) -> EpisodePicture | None:
    """Compare the ONNX policy in `folder` with the checkpoint `policy`, on observations {key: (B, To, ...)} and in
    episodes of `seeds`, and add the results to `proof`. Returns a picture of the first episode.

    DdpError if a check fails.
    """
    exported, limits = open_exported_policy(folder), action_limits(policy, meta)
    proof["differences"]["actions"] = compare_actions(policy, exported, limits, obs)
    check_differences(proof)
    proof["limits"] = compare_limits(exported, limits, obs)
    proof["latency"] = measure_latency(exported, obs)
    if not seeds:
        return None
    render = str(meta.get("render", "fast"))
    proof["episodes"], picture = compare_episodes(policy, exported, limits, render, seeds, on_episode)
    return picture


def check_differences(proof: dict[str, Any]) -> None:
    """DdpError if one of the differences from torch exceeds the tolerance."""
    for name, value in proof["differences"].items():
        if not value <= proof["tolerance"]:
            raise DdpError(
                f"{name}: output differs from torch by {value:.1e}, more than {proof['tolerance']:.0e}.",
                "Use --precision fp32; if it is, report this as a bug.",
            )


def compare_actions(policy: DiffusionPolicy, exported: Policy, limits: ActionLimits, obs: dict[str, Tensor]) -> float:
    """Largest difference between the predicted actions of both, from observations {key: (B, To, ...)} and the same
    noise. Positions, grippers and delta actions are limited, rotations are compared as they are predicted: projecting a
    nearly degenerate one amplifies rounding errors. `compare_limits` checks the projection. Differences of values whose
    normalization reduces them are those of the normalized values.

    Infinite if the exported policy predicts actions that are not finite (possible in lower precision).
    """
    low, high = (np.array([np.nan if x is None else x for x in limits.to_json()[key]]) for key in ("low", "high"))
    scale = policy.normalizer.get_buffer("action_scale").cpu().numpy().clip(max=1.0)
    largest = 0.0
    for i in range(len(next(iter(obs.values())))):
        sample = {key: value[i : i + 1] for key, value in obs.items()}
        expected = policy.predict_action(sample, torch.Generator().manual_seed(i))["action"][0].numpy()
        noise = sample_torch_noise(exported, torch.Generator().manual_seed(i))
        try:
            actions = exported.predict(_to_camera_layout(obs, i), noise)
        except PolicyError:
            return math.inf
        expected, actions = (np.fmin(np.fmax(x, low), high) for x in (expected, actions))
        largest = max(largest, float((np.abs(actions - expected) * scale).max()))
    return largest


def compare_limits(exported: Policy, limits: ActionLimits, obs: dict[str, Tensor]) -> dict[str, int]:
    """Check that the runtime limits its actions exactly as evaluation does, from observations {key: (B, To, ...)}.

    Noise of several widths is used: wide noise leads to actions out of range and to degenerate rotations. Returns the
    number of actions, of those that the limits change, and of those whose rotation is replaced by the previous one.
    DdpError if an action differs.
    """
    counts = {"actions": 0, "limited": 0, "held": 0}
    for i in range(len(next(iter(obs.values())))):
        sample, previous_action = _to_camera_layout(obs, i), limits.neutral_action()
        for width in NOISE_WIDTHS:
            noise = width * exported.sample_noise(np.random.default_rng(i))
            try:
                predicted = exported.predict(sample, noise)
                actions = exported.act(sample, noise, previous_action)
            except PolicyError as e:
                if width == 1.0:
                    raise DdpError(str(e), "Use --precision fp32.") from e
                continue  # overflow in lower precision: such actions raise an error, also on a robot
            expected = clamp_chunk(limits, predicted, previous_action)
            if exported.limits != limits or not np.array_equal(actions, expected.astype(np.float32)):
                raise DdpError("the exported policy limits its actions differently from evaluation.", REPORT_HINT)
            counts["actions"] += len(actions)
            rounding = ROUNDING * np.abs(predicted).clip(min=1.0)
            counts["limited"] += int((np.abs(actions - predicted) > rounding).any(1).sum())
            counts["held"] += limits.count_degenerate(predicted)
            previous_action = actions[-1].astype(np.float64)
    return counts


def _to_camera_layout(obs: dict[str, Tensor], i: int) -> dict[str, np.ndarray[Any, Any]]:
    """Sample `i` of a batch as an exported policy takes it: images (To, 3, H, W) -> (To, H, W, 3)."""
    sample = {key: value[i] for key, value in obs.items()}
    return {key: (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy() for key, x in sample.items()}


def measure_latency(exported: Policy, obs: dict[str, Tensor]) -> dict[str, float]:
    """Latency of a chunk on this machine, with one thread: median and 95th percentile [ms]."""
    sample = _to_camera_layout(obs, 0)
    noise, previous_action = exported.sample_noise(np.random.default_rng(0)), exported.limits.neutral_action()
    latencies = []
    for _ in range(TIMED_CHUNKS + 1):
        start = time.perf_counter()
        exported.act(sample, noise, previous_action)
        latencies.append((time.perf_counter() - start) * 1e3)
    return {"p50_ms": float(np.percentile(latencies[1:], 50)), "p95_ms": float(np.percentile(latencies[1:], 95))}


def compare_episodes(
    policy: DiffusionPolicy,
    exported: Policy,
    limits: ActionLimits,
    render: str,
    seeds: Sequence[int],
    on_episode: Callable[[int], None],
) -> tuple[dict[str, Any], EpisodePicture | None]:
    """Run both policies from the same initial states with the same noise: their results, the seeds that differ, and a
    picture of the first episode. `limits` are those of the checkpoint.

    Contacts amplify rounding differences, so a few outcomes may differ. Without a simulator, the reason it is missing.
    """
    try:
        sim = Simulator(policy.config.task, render, policy.config.actions)
    except SimulatorError as e:
        return {"not_run": e.message}, None
    agents: tuple[Agent, Agent] = PolicyAgent(policy, limits=limits), ExportedAgent(exported)
    episodes: list[dict[str, Any]] = []
    picture = None
    for seed in seeds:
        states = EpisodeStates(sim)
        results = {
            "checkpoint": run_episode(sim, agents[0], seed),
            "exported": run_episode(sim, agents[1], seed, None if episodes else states.append),
        }
        if not episodes:
            picture = states.render(results["exported"])
        outcomes = {name: {"success": r.success, "steps": r.steps} for name, r in results.items()}
        episodes.append({"seed": seed} | outcomes)
        on_episode(len(episodes))
    sim.close()
    differing = [e["seed"] for e in episodes if e["checkpoint"]["success"] != e["exported"]["success"]]
    return {"episodes": episodes, "differing": differing}, picture


def summary_lines(proof: dict[str, Any]) -> list[str]:
    """The checks as text, one line per result."""
    lines = [f"compared on {proof['observations']}"]
    lines += [
        f"{name}: largest difference from torch {value:.1e} (tolerance {proof['tolerance']:.0e})"
        for name, value in proof["differences"].items()
    ]
    if "limits" in proof:
        counts = proof["limits"]
        lines.append(
            f"limits: {counts['actions']} actions limited exactly as in evaluation; {counts['limited']} were changed, "
            f"{counts['held']} of them hold the previous rotation"
        )
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
