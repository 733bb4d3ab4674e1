"""The episode that a store holds for a demo: observations that were not recorded are computed in the simulator."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.actions import to_store_actions
from ddp_cli.data.demo import Demo
from ddp_cli.errors import SimulatorError
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task

Episode = dict[str, NDArray[Any]]
"""Arrays of a store by key, (n, ...) each; n steps."""

MODEL_RECORDED = "recorded"
MODEL_SHARED = "the same for all demos"
MODEL_CURRENT = "of this robosuite: the recorded one does not load"
"""Sources of the model in which the recorded states are set; stores keep these strings."""


@dataclass(frozen=True)
class RenderSpec:
    """The contents of an episode: observations for `obs` (image or state) and actions in the convention `actions`
    (delta or absolute), converted from recorded ones in `source_actions`. `render` is the render profile of images.
    """

    obs: str = "image"
    actions: str = "delta"
    source_actions: str = "delta"
    render: str = "fast"

    @property
    def converts_actions(self) -> bool:
        return self.source_actions != self.actions

    def needs_simulator(self, task: Task, demo: Demo) -> bool:
        """Whether the episode holds anything that was not recorded."""
        keys = (*task.images(self.obs), *task.vectors("state"))
        return self.converts_actions or any(key not in demo.obs for key in keys)


def build_episode(task: Task, sim: Simulator | None, spec: RenderSpec, demo: Demo) -> Episode:
    """Observations before each action of `demo`, (n, ...) per key, and the actions to imitate (n, Da).

    `sim` may be None if `demo.obs` holds every observation.
    """
    target_actions = to_store_actions(demo.target_actions, spec.source_actions, task.schema.action)
    if sim is None:
        return demo.obs | {"action": target_actions.astype(np.float32)}
    load_demo_model(sim, demo)
    steps: list[Episode] = []
    image_keys = [key for key in sim.task.images(spec.obs) if key not in demo.obs]
    for state, action in zip(demo.states, target_actions, strict=True):
        if spec.converts_actions:
            sim.set_state(state)  # the controllers need the state: they compute the goal
            stored_action = sim.absolute_goal(action)
        else:
            sim.set_kinematic_state(state)
            stored_action = action
        step = {key: sim.image(key) for key in image_keys} | sim.low_dim()
        step = {key: value for key, value in step.items() if key not in demo.obs}
        steps.append(step | {"action": stored_action.astype(np.float32)})
    return demo.obs | {key: np.stack([step[key] for step in steps]) for key in steps[0]}


def load_demo_model(sim: Simulator, demo: Demo) -> str:
    """Loads the model that `demo` was recorded with, if models vary between episodes; returns its source (MODEL_...).

    The XML of an older robosuite may not load. Then a model of the installed robosuite is used, which may differ (Lift:
    the cube's edges by 2 mm): the replay check says so, and whether the actions have the recorded effect in it.
    """
    if not sim.task.robosuite.model_varies:
        return MODEL_SHARED
    if demo.xml:
        with contextlib.suppress(SimulatorError):
            sim.load_xml(demo.xml)
            return MODEL_RECORDED
    sim.reset(0)
    return MODEL_CURRENT
