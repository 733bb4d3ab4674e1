"""Whether the observables of a task can be computed from a recorded simulator state."""

from __future__ import annotations

import numpy as np

from ddp_cli.errors import ConfigError
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import ACTION_WIDTHS


def check_state_determines_observations(sim: Simulator) -> None:
    """ConfigError if the task has observables that setting a state does not restore (accelerations, for example):
    their values in the store would differ from those in a rollout.
    """
    sim.reset(0)
    rng = np.random.default_rng(0)
    for action in rng.uniform(-1, 1, (5, ACTION_WIDTHS["delta"])):
        sim.step(action)
    state, expected = sim.state(), sim.low_dim()
    for action in rng.uniform(-1, 1, (5, ACTION_WIDTHS["delta"])):
        sim.step(action)
    sim.set_kinematic_state(state)
    not_restored = [key for key, value in sim.low_dim().items() if not np.array_equal(value, expected[key])]
    if not_restored:
        raise ConfigError(
            f"task '{sim.task.name}': '{not_restored[0]}' is not determined by the recorded state, so it cannot be "
            "converted.",
            "Remove it from the task.",
        )
