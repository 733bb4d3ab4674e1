"""An agent whose actions identify the observation they were predicted from, and streams of it with exact timestamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ddp_cli.action_limits import ActionLimits
from ddp_cli.deploy.streaming import ActionStream
from ddp_cli.robots import delta_parts

PERIOD = 0.05
TA = 8


class ActingAgent(Protocol):
    act: Callable[..., np.ndarray]


class StampedAgent:
    """Encodes in each action the timestamp of the newest observation, and the index in the chunk.

    `transform` is applied to every chunk: it may change it, wait, or raise.
    """

    def __init__(self, transform: Callable[[np.ndarray], np.ndarray] = lambda chunk: chunk) -> None:
        self.histories: list[list[float]] = []
        self.transform = transform

    def act(self, history: Sequence) -> np.ndarray:
        self.histories.append([float(obs["time"][0]) for obs in history])
        chunk = np.zeros((TA, 7))
        chunk[:, 0] = self.histories[-1][-1] / 100
        chunk[:, 1] = np.arange(1, TA + 1) / 100
        chunk[:, 6] = 1.0
        return self.transform(chunk)


def make_stream(
    agent: ActingAgent, latency: Callable[[], float] | None = lambda: 0.0, **settings: object
) -> ActionStream:
    defaults = {
        "n_obs_steps": 2,
        "n_action_steps": TA,
        "control_hz": 20,
        "action_limits": ActionLimits.from_parts(delta_parts()),
        "latency": latency,
    }
    return ActionStream(agent.act, **defaults | settings)


def observe(stream: ActionStream, stamp: float) -> None:
    stream.observe({"time": np.array([stamp])}, stamp)


def intended_time(action: np.ndarray) -> float | None:
    """The time that an action was predicted for [s]; None if the robot was held."""
    return None if action[1] == 0 else 100 * action[0] + PERIOD * (round(100 * action[1]) - 1)


def run_ticks(stream: ActionStream, n: int, first: int = 0) -> list[float | None]:
    """Runs n ticks with an observation at each; returns the ticks that their actions were predicted for."""
    intended_ticks = []
    for tick in range(first, first + n):
        observe(stream, tick * PERIOD)
        intended = intended_time(stream.action(tick * PERIOD))
        intended_ticks.append(None if intended is None else round(intended / PERIOD, 6))
    return intended_ticks
