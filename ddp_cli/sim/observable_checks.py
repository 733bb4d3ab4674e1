"""Whether the observables of a task can be computed from a recorded simulator state."""

from __future__ import annotations

import numpy as np

from ddp_cli.errors import ConfigError
from ddp_cli.schema import OBJECT
from ddp_cli.sim.simulator import Simulator

N_STEPS = 5


def check_state_determines_observations(sim: Simulator) -> None:
    """ConfigError if the task has observables that setting a state does not restore (accelerations, for example):
    their values in the store would differ from those in a rollout.
    """
    undetermined = undetermined_observables(sim)
    if undetermined:
        raise ConfigError(
            f"task '{sim.task.name}': '{undetermined[0]}' is not determined by the recorded state, so it cannot be "
            "converted.",
            "Remove it from the task.",
        )


def undetermined_observables(sim: Simulator) -> list[str]:
    """Observables of the task that setting a state does not restore."""
    sim.reset(0)
    rng, width = np.random.default_rng(0), sim.task.schema.action_dim
    for action in rng.uniform(-1, 1, (N_STEPS, width)):
        sim.step(action)
    state, expected = sim.state(), sim.observables()
    for action in rng.uniform(-1, 1, (N_STEPS, width)):
        sim.step(action)
    sim.set_kinematic_state(state)
    restored = sim.observables()
    keys = [*sim.task.robosuite.object, *(key for key in sim.task.vectors("state") if key != OBJECT)]
    return [key for key in keys if not np.array_equal(restored.get(key, []), expected.get(key, []))]
