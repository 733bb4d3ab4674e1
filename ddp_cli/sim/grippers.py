"""How far grippers are open, and what it says about a grasp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

PADS = ("left_fingerpad", "right_fingerpad")


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


def finger_distance(env: Any, gripper: Any) -> tuple[float, float]:
    """Distance between the fingers of a robosuite `gripper` [m], and its rate of change [m/s]; zeros without fingers.

    That of a Panda is measured by its joints, those of others between the centres of the finger pads.
    """
    if type(gripper).__name__ == "PandaGripper":
        data = env.sim.data
        left_position, right_position = (data.get_joint_qpos(joint) for joint in gripper.joints)
        left_velocity, right_velocity = (data.get_joint_qvel(joint) for joint in gripper.joints)
        return float(left_position - right_position), float(left_velocity - right_velocity)
    has_pads = all(gripper.important_geoms.get(pad) for pad in PADS)
    return _pad_distance(env, gripper.important_geoms) if has_pads else (0.0, 0.0)


def _pad_distance(env: Any, pads: Any) -> tuple[float, float]:
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    positions, velocities = [], []
    for pad in PADS:
        geom = env.sim.model.geom_name2id(pads[pad][0])
        jacobian = np.zeros((3, model.nv))
        mujoco.mj_jac(model, data, jacobian, None, data.geom_xpos[geom], model.geom_bodyid[geom])
        positions.append(np.array(data.geom_xpos[geom]))
        velocities.append(jacobian @ data.qvel)
    offset = positions[1] - positions[0]
    distance = float(np.linalg.norm(offset))
    return distance, float(offset @ (velocities[1] - velocities[0])) / distance
