"""An arm of a simulated robot: its end effector, its gripper, and the goals of its controller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.robots import robot_prefixes
from ddp_cli.sim.grippers import finger_distance

Array = NDArray[np.float64]


class Arm:
    """The arm `name` (right or left) of the robot `index` of an environment, whose resets replace the robots.

    `prefix`: that of its parts of an action. `gripper_command`: the values of robosuite's action for its gripper.
    """

    def __init__(self, env: Any, index: int, name: str, prefix: str, gripper_command: slice) -> None:
        self._env, self._index, self.name = env, index, name
        self.prefix, self.gripper_command = prefix, gripper_command

    @property
    def _robot(self) -> Any:
        return self._env.robots[self._index]

    @property
    def controller(self) -> Any:
        """Its controller."""
        return self._robot.part_controllers[self.name]

    @property
    def gripper(self) -> Any:
        """Robosuite's model of its gripper."""
        return self._robot.gripper[self.name]

    def eef_pose(self) -> tuple[Array, Array]:
        """Position [m] (3,) and orientation (3, 3) of the end effector in the world frame."""
        site, data = self._robot.eef_site_id[self.name], self._env.sim.data._data
        return np.array(data.site_xpos[site]), np.array(data.site_xmat[site]).reshape(3, 3)

    def gripper_opening(self) -> tuple[float, float]:
        """Distance between the gripper's fingers [m] and its rate of change [m/s]; zeros without fingers."""
        return finger_distance(self._env, self.gripper)

    def frame(self) -> Array:
        """Orientation (3, 3) of the frame of delta actions in the world frame."""
        controller = self.controller
        is_base = getattr(controller, "input_ref_frame", "world") == "base"
        return np.array(controller.origin_ori) if is_base else np.eye(3)

    def goal(self, offset: Array) -> tuple[Array, Array]:
        """The goal pose in the world frame, (3,) [m] and (3, 3), of the delta action `offset` (6,) in this state."""
        controller = self.controller
        controller.set_goal(offset)
        controller.new_update = True  # otherwise the next step would reuse the state computed here
        if controller.input_ref_frame == "world":
            return np.array(controller.goal_pos), np.array(controller.goal_ori)
        frame = self.frame()
        return controller.origin_pos + frame @ controller.goal_pos, frame @ controller.goal_ori

    def restart_gripper(self, commands: Iterable[Array]) -> None:
        """Set the command that the gripper integrates to that after `commands` (dof,) from the start of an episode."""
        self.gripper.current_action = np.zeros(self.gripper.dof)
        for command in commands:
            self.gripper.format_action(command)


def arm_prefix(robot: Any, prefix: str, name: str) -> str:
    """The prefix of the parts of an arm of `robot`, whose own prefix is `prefix`."""
    return prefix if len(robot.arms) == 1 else f"{prefix}{name}_"


def find_arms(env: Any) -> list[Arm]:
    """All arms of an environment."""
    arms, begin = [], 0
    for index, prefix in enumerate(robot_prefixes(len(env.robots))):
        robot = env.robots[index]
        for name in robot.arms:
            first, last = robot.composite_controller._action_split_indexes.get(f"{name}_gripper", (0, 0))
            arms.append(Arm(env, index, name, arm_prefix(robot, prefix, name), slice(begin + first, begin + last)))
        begin += robot.action_dim
    return arms
