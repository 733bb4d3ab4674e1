"""How far grippers are open, and what it says about a grasp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class GripperOpenings:
    """Openings of a gripper [m], as `Simulator.gripper_opening` measures them."""

    closed: float
    """On nothing."""
    held: float
    """Wider than with any object."""
    wide: float
    """Wide open, minus a margin."""
    ready: float
    """Wide enough to close around an object."""


GRIPPERS = {
    "Panda": GripperOpenings(0.004, 0.072, 0.076, 0.06),
    "IIWA": GripperOpenings(0.03, 0.12, 0.125, 0.1),
}
"""By robot, measured. In robosuite 1.5.2 the fingers of the UR5e and the Kinova3 hardly close on a cube of 4 cm, those
of the Sawyer open 2 mm wider than it, and those of the Jaco take seconds.
"""


def pad_distance(env: Any) -> tuple[float, float]:
    """Distance between the centres of the finger pads of the only arm [m], and its rate of change [m/s]."""
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    pads = env.robots[0].gripper["right"].important_geoms
    positions, velocities = [], []
    for pad in ("left_fingerpad", "right_fingerpad"):
        geom = env.sim.model.geom_name2id(pads[pad][0])
        jacobian = np.zeros((3, model.nv))
        mujoco.mj_jac(model, data, jacobian, None, data.geom_xpos[geom], model.geom_bodyid[geom])
        positions.append(np.array(data.geom_xpos[geom]))
        velocities.append(jacobian @ data.qvel)
    offset = positions[1] - positions[0]
    distance = float(np.linalg.norm(offset))
    return distance, float(offset @ (velocities[1] - velocities[0])) / distance
