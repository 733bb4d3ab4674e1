"""Whether the shortcuts of the simulator change nothing, by comparing them with robosuite's own way.

For the built-in tasks, tests prove it. For others it is compared when they start; a shortcut that differs is not taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np

N_STEPS = 6


def is_stepping_exact(sim: Any, compare: bool) -> bool:
    """Whether `FastStepper` can be used in a `Simulator`. With `compare`, whether it gives the states of robosuite's
    own steps, bit for bit: start a new episode afterwards.
    """
    from ddp_cli.sim.stepping import FastStepper, supports_fast_stepping

    if not supports_fast_stepping(sim.env) or not compare:
        return supports_fast_stepping(sim.env)
    start, ends = sim.state(), []
    for make_step in (lambda: FastStepper(sim.env).step, lambda: sim.env.step):
        sim.set_state(start)
        step = make_step()
        for action in np.random.default_rng(0).uniform(-1, 1, (N_STEPS, sim.env.action_dim)):
            step(action)
        ends.append(sim.state())
    return np.array_equal(ends[0], ends[1])


def is_culling_exact(sim: Any, key: str) -> bool:
    """Whether the image of a camera of a `Simulator` has the same pixels with all geoms, in the current state."""
    return np.array_equal(sim.image(key), sim.image(key, cull=False))
