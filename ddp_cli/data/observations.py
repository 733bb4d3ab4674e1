"""One demo as a policy would have seen it: what was recorded is taken, the rest is looked at in the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.demo_file import Demo
from ddp_cli.errors import SimulatorError
from ddp_cli.rotation import matrix_to_6d, rotvec_to_matrix
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task

Episode = dict[str, NDArray[Any]]

RECORDED, SHARED, TODAYS = "recorded", "the same for all demos", "of this robosuite: the recorded one does not load"
"""Which model the states of a demo are set in."""


@dataclass(frozen=True)
class RenderSpec:
    """What an episode is to hold: pictures and poses for `obs`, and actions by the convention `actions`, made of
    recorded ones by the convention `given`. What is drawn is drawn by the profile `render`.
    """

    obs: str = "image"
    actions: str = "delta"
    given: str = "delta"
    render: str = "fast"

    def needs_simulator(self, task: Task, demo: Demo) -> bool:
        """Whether something is wanted that was not recorded."""
        wanted = (*task.images(self.obs), *task.vectors("state"))
        return self.given != self.actions or any(key not in demo.obs for key in wanted)


def look(sim: Simulator | None, how: RenderSpec, demo: Demo) -> Episode:
    """What the robot saw before each action of `demo`: (n, ...) per key, and the actions to learn (n, 7 or 10).

    Without a simulator, `demo.obs` holds everything.
    """
    # Delta actions beyond 1 (people push hard) do what 1 does: the controller limits them, and the store says so.
    target_actions = demo.target_actions.clip(-1, 1) if how.given == "delta" else as_goals(demo.target_actions)
    if sim is None:
        return demo.obs | {"action": target_actions.astype(np.float32)}
    load_demo_model(sim, demo)
    frames: list[Episode] = []
    drawn = [key for key in sim.task.images(how.obs) if key not in demo.obs]
    for state, action in zip(demo.states, target_actions, strict=True):
        if how.given != how.actions:
            sim.set_state(state)  # the goal is made by controllers that know where the arm is
        else:
            sim.show_state(state)
        stored = sim.goal(action) if how.given != how.actions else action
        seen = {key: sim.image(key) for key in drawn} | sim.low_dim() | {"action": stored.astype(np.float32)}
        frames.append({key: value for key, value in seen.items() if key not in demo.obs})
    return demo.obs | {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}


def as_goals(actions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Recorded absolute actions (n, 7: position, axis-angle, gripper) as stored ones (n, 10: with rotation-6d)."""
    turns = np.stack([matrix_to_6d(rotvec_to_matrix(turn)) for turn in actions[:, 3:6]])
    return np.concatenate([actions[:, :3], turns, actions[:, 6:]], axis=1)


def load_demo_model(sim: Simulator, demo: Demo) -> str:
    """Loads the model that `demo` was recorded with, where models vary; says which one the states are in.

    The XML of an older robosuite does not load. Then the states are set in a model of today, as far as that is
    sound: a built-in task's models differ little (Lift: the cube's edges by 2 mm).
    """
    if not sim.task.model_varies:
        return SHARED
    if demo.xml:
        try:
            sim.load_xml(demo.xml)
            return RECORDED
        except SimulatorError:
            if not sim.task.built_in:
                raise
    sim.reset(0)
    return TODAYS
