"""Success and jumps at the seams of chunks, by latency: `python tests/bench/seams.py CHECKPOINT [--starts 100]`.

A policy runs in the simulator by streaming control. Its latency is simulated: chunks arrive a number of periods after
they were requested, so the result does not depend on the machine. A new chunk is requested every half chunk.

plain      a chunk is executed from its first action when it arrives
aligned    `ActionStream`: actions are executed in the period that they were predicted for
prefix     aligned, and the policy continues the actions that will have been executed (trained with prefix_steps)
inpaint    the same of a policy that was trained without
blend      aligned, and a chunk takes over gradually
ensemble   aligned, and the mean of all chunks that overlap

A jump is the length of the change from one executed action to the next, over all values but those of grippers, which
open and close at once. It is reported at seams, where another chunk takes over, as a multiple of that inside chunks.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.checkpoint_lookup import resolve_checkpoint
from ddp_cli.deploy.streaming import ActionStream
from ddp_cli.evaluation.statistics import wilson_interval
from ddp_cli.inference.agent import PolicyAgent
from ddp_cli.schema import action_slices
from ddp_cli.seeds import FIRST_SEED
from ddp_cli.sim.simulator import Simulator

INPAINTED_STEPS = 4
BLEND_STEPS = 2
ENSEMBLE = 0.01  # the weight of the paper


class PlainStream:
    """Executes a chunk from its first action when it arrives, `latency` periods after its request."""

    def __init__(self, agent: PolicyAgent, latency: int, start: NDArray[Any]) -> None:
        self.agent, self.latency, self.last_action = agent, latency, start
        self.history: deque[Any] = deque(maxlen=agent.n_obs_steps)
        self.replan_every = agent.n_action_steps // 2
        self.tick, self.request_tick = -1, -self.replan_every
        self.pending: tuple[int, NDArray[Any]] | None = None  # tick of arrival, chunk
        self.chunk: deque[NDArray[Any]] = deque()
        self.chunks = self.held = 0

    def observe(self, obs: Any, _stamp: float) -> None:
        self.history.extend([obs] * (1 if self.history else self.agent.n_obs_steps))

    def action(self, _stamp: float) -> NDArray[Any]:
        self.tick += 1
        limits = self.agent.action_limits
        for _ in range(2):  # without latency a chunk arrives in the period of its request
            if self.pending and self.tick >= self.pending[0]:
                self.chunk, self.pending = deque(self.pending[1]), None
                self.chunks += 1
            if not self.pending and self.tick - self.request_tick >= self.replan_every:
                chunk = limits.clamp(self.agent.act(list(self.history)), self.last_action, "plain")
                self.pending, self.request_tick = (self.tick + self.latency, chunk), self.tick
        self.held += not self.chunk
        self.last_action = self.chunk.popleft() if self.chunk else limits.hold_action(self.last_action)
        return self.last_action

    def counts(self) -> tuple[int, int]:
        """Chunks so far, and periods in which the robot was held."""
        return self.chunks, self.held


class AlignedStream(ActionStream):
    """`ActionStream` with a constant latency [periods]."""

    def __init__(self, agent: PolicyAgent, latency: int, start: NDArray[Any], **settings: Any) -> None:
        super().__init__(
            agent.act, n_obs_steps=agent.n_obs_steps, n_action_steps=agent.n_action_steps, start=start,
            action_limits=agent.action_limits, control_hz=agent.control_hz,
            latency=lambda: latency / agent.control_hz, **settings,
        )  # fmt: skip

    def counts(self) -> tuple[int, int]:
        """Chunks so far, and periods in which the robot was held."""
        stats = self.stats()
        return stats.chunks, stats.waiting_ticks + stats.late_ticks


def make_stream(method: str, agent: PolicyAgent, latency: int, start: NDArray[Any]) -> PlainStream | AlignedStream:
    if method == "plain":
        return PlainStream(agent, latency, start)
    steps = agent.prefix_steps if method in ("prefix", "inpaint") else 0
    return AlignedStream(
        agent, latency, start, prefix_steps=steps, blend_steps=BLEND_STEPS if method == "blend" else 0,
        ensemble=ENSEMBLE if method == "ensemble" else None,
    )  # fmt: skip


def run_episode(
    sim: Simulator, agent: PolicyAgent, method: str, latency: int, seed: int, max_steps: int
) -> tuple[int, list[float], list[float], int]:
    """Steps to success (0 without), jumps at seams and inside chunks, and periods in which the robot was held."""
    values = np.ones(agent.policy.config.action_dim, bool)
    parts = agent.policy.config.action_parts
    for part, columns in zip(parts, action_slices(parts), strict=True):
        values[columns] = not part.gripper
    sim.reset(seed)
    agent.reset(seed)
    stream = make_stream(method, agent, latency, sim.idle_action())
    seams: list[float] = []
    inside: list[float] = []
    previous, chunks, held, was_held = None, 0, 0, True
    for tick in range(max_steps):
        stamp = tick / agent.control_hz
        stream.observe(sim.observe(agent.obs), stamp)
        action = stream.action(stamp)
        new_chunks, new_held = stream.counts()
        is_held = new_held > held
        if previous is not None and not is_held and not was_held:
            jump = float(np.linalg.norm((action - previous)[values]))
            (seams if new_chunks > chunks else inside).append(jump)
        previous, chunks, held, was_held = action, new_chunks, new_held, is_held
        if sim.step(action):
            return tick + 1, seams, inside, held
    return 0, seams, inside, held


def measure(
    sim: Simulator, agent: PolicyAgent, method: str, latency: int, seeds: Sequence[int], max_steps: int
) -> dict[str, Any]:
    """Success and jumps of one method at one latency [periods]."""
    episodes = [run_episode(sim, agent, method, latency, seed, max_steps) for seed in seeds]
    steps = [n for n, *_ in episodes]
    seams, inside = (np.array([x for episode in episodes for x in episode[i]]) for i in (1, 2))
    successes = sum(n > 0 for n in steps)
    return {
        "method": method,
        "latency": latency,
        "starts": len(seeds),
        "successes": successes,
        "interval": wilson_interval(successes, len(seeds)),
        "steps_to_success": float(np.mean([n for n in steps if n])) if successes else None,
        "seam_mean": _ratio(seams, inside, np.mean),
        "seam_p95": _ratio(seams, inside, lambda x: np.percentile(x, 95)),
        "inside_mean": float(inside.mean()) if len(inside) else None,
        "seams": len(seams),
        "held": sum(episode[3] for episode in episodes),
    }


def _ratio(seams: NDArray[np.float64], inside: NDArray[np.float64], statistic: Any) -> float | None:
    return float(statistic(seams) / statistic(inside)) if len(seams) and len(inside) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--methods", nargs="+", default=["plain", "aligned", "prefix"])
    parser.add_argument("--latencies", nargs="+", type=int, default=[0, 1, 2, 4, 6, 8], help="in periods")
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--max-steps", type=int, default=150)
    args = parser.parse_args()
    policy, meta = load_policy(resolve_checkpoint(args.checkpoint, Path("runs"), None))
    inpainted = INPAINTED_STEPS if "inpaint" in args.methods else 0
    agent = PolicyAgent(policy, inpainting_steps=inpainted)
    sim = Simulator(policy.config.task, str(meta.get("render", "fast")), agent.actions)
    seeds = range(FIRST_SEED["eval"], FIRST_SEED["eval"] + args.starts)
    for latency in args.latencies:
        for method in args.methods:
            print(json.dumps(measure(sim, agent, method, latency, seeds, args.max_steps)), flush=True)
    sim.close()


if __name__ == "__main__":
    main()
