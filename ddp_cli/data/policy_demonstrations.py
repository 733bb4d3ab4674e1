"""Demonstrations in the states that a policy visits: it acts, and the scripted policy labels every step (DAgger).

A policy that was trained on demonstrations alone has not seen where its own errors lead. Episodes of the policy, with
what the demonstrator would have done in each of their states, show it (Ross et al. 2011, "A reduction of imitation
learning and structured prediction to no-regret online learning"). With a takeover, the demonstrator ends an episode in
which the policy has strayed (Kelly et al. 2019, "HG-DAgger: interactive imitation learning with human experts").

Actions: delta, (7,) for each arm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddp_cli.data.demo import Demo
from ddp_cli.evaluation.rollout import Agent, clamp_chunk
from ddp_cli.robots import ARM_WIDTHS, DELTA_METRES, DELTA_RADIANS
from ddp_cli.rotation import Array, matrix_from_6d, matrix_to_rotvec
from ddp_cli.sim.scripted_policies import scripted_action
from ddp_cli.sim.simulator import SUCCESS_HOLD_STEPS, Simulator
from ddp_cli.tasks import Task

TAKEOVER_STEPS = 48  # 2.4 s, six chunks of the default length: what most errors take that a policy corrects itself
TAKEOVER_PROGRESS = 0.05  # of the motion of the demonstrator; 0 for a policy that stands still


@dataclass(frozen=True)
class ActingPolicy:
    """The policy of a collection. It can be pickled, for worker processes."""

    make_agent: Callable[[], Agent]
    render: str
    takeover: bool
    """Whether the demonstrator takes control when the policy has strayed."""
    settings: dict[str, Any]
    """What determines the actions of the policy, as values that JSON can represent: a hash of its content, its sampler.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the demos besides task, seeds and versions."""
        rule = {"steps": TAKEOVER_STEPS, "progress": TAKEOVER_PROGRESS}
        return self.settings | {"takeover": rule if self.takeover else None}

    def make_recorder(self, task: Task) -> Callable[[int], Demo | None]:
        """`record_policy_demo` with a simulator and an agent of its own, for a seed."""
        return functools.partial(
            record_policy_demo, Simulator(task, self.render), self.make_agent(), takeover=self.takeover
        )


def record_policy_demo(sim: Simulator, agent: Agent, seed: int, takeover: bool) -> Demo | None:
    """One episode of `agent` from the initial state `seed`, with the scripted policy's actions as `intended`.

    It ends as a scripted demonstration does, when success has held, or else at the task's horizon. With `takeover` the
    scripted policy acts from the step on at which the agent has strayed, or from the horizon on, and for as many steps
    at most; None if it does not succeed either.
    """
    sim.reset(seed)
    episode, horizon = _Episode(sim), sim.task.horizon
    for action in policy_actions(sim, agent, seed):
        if takeover and has_strayed(episode.executed, episode.intended):
            break
        episode.step(action, scripted_action(sim))
        if episode.has_succeeded or episode.steps == horizon:
            break
    policy_steps = episode.steps
    while takeover and not episode.has_succeeded:
        if episode.steps == policy_steps + horizon:
            return None
        label = scripted_action(sim)
        episode.step(label, label)
    return episode.demo(seed, policy_steps)


def has_strayed(executed: Sequence[Array], intended: Sequence[Array]) -> bool:
    """Whether a policy has strayed: in the last `TAKEOVER_STEPS` steps its translations, projected on those that the
    demonstrator intended, are less than `TAKEOVER_PROGRESS` of them. It stands still, moves at random, or away.
    """
    if len(executed) < TAKEOVER_STEPS:
        return False
    a, b = (
        np.reshape(actions[-TAKEOVER_STEPS:], (TAKEOVER_STEPS, -1, ARM_WIDTHS["delta"]))[..., :3]
        for actions in (executed, intended)
    )
    return float(np.sum(a * b)) < TAKEOVER_PROGRESS * float(np.sum(b * b))


class _Episode:
    """The steps of an episode since its reset."""

    def __init__(self, sim: Simulator) -> None:
        self._sim, self._xml = sim, sim.model_xml()
        self._states: list[Array] = []
        self.executed: list[Array] = []
        self.intended: list[Array] = []
        self._success_steps = 0

    @property
    def steps(self) -> int:
        return len(self._states)

    @property
    def has_succeeded(self) -> bool:
        return self._success_steps == SUCCESS_HOLD_STEPS

    def step(self, action: Array, intended: Array) -> None:
        self._states.append(self._sim.state())
        self.executed.append(action)
        self.intended.append(intended)
        self._success_steps = self._success_steps + 1 if self._sim.step(action) else 0

    def demo(self, seed: int, policy_steps: int) -> Demo:
        return Demo(
            np.stack(self._states), np.stack(self.executed), self._xml, seed, np.stack(self.intended),
            policy_steps=policy_steps, success=self.has_succeeded,
        )  # fmt: skip


def policy_actions(sim: Simulator, agent: Agent, seed: int) -> Iterator[Array]:
    """Endless delta actions of `agent`, from the current state of `sim`, which takes delta actions.

    Each is to be executed before the next one is requested. As in an evaluation, the agent predicts a chunk, all of
    which is executed.
    """
    agent.reset(seed)
    is_absolute = agent.actions == "absolute"
    previous_action = sim.idle_action()
    if is_absolute:
        previous_action = sim.absolute_goal(previous_action)
    history = [sim.observe(agent.obs)] * agent.n_obs_steps
    while True:
        chunk = clamp_chunk(agent.action_limits, agent.act(history), previous_action, f"seed {seed}")
        previous_action = chunk[-1]
        for i, action in enumerate(chunk):
            yield goal_to_delta(sim, action) if is_absolute else action
            if len(chunk) - 1 - i < agent.n_obs_steps:
                history = [*history[1:], sim.observe(agent.obs)]


def goal_to_delta(sim: Simulator, goal: Array) -> Array:
    """The delta action that sets the absolute `goal`, (10,) for each arm, in the current state of `sim`, the inverse of
    `Simulator.absolute_goal`; clipped to [-1, 1]: one step does not reach goals beyond.
    """
    values: list[Array] = []
    for arm, goal_of_arm in enumerate(goal.reshape(-1, ARM_WIDTHS["absolute"])):
        position, rotation = sim.eef_pose(arm)
        frame = sim.base_orientation(arm)
        values.append(frame.T @ (goal_of_arm[:3] - position) / DELTA_METRES)
        values.append(frame.T @ matrix_to_rotvec(matrix_from_6d(goal_of_arm[3:9]) @ rotation.T) / DELTA_RADIANS)
        values.append(goal_of_arm[9:])
    return np.concatenate(values).clip(-1.0, 1.0)
