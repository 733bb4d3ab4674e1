"""A control period without robosuite's overhead, with bit-identical states.

In each of the 25 physics steps of an action, robosuite looks up names, computes every Jacobian several times and
updates observables that are read once or never: three quarters of the time. Here its controllers set the goal and
move the gripper once per action; the arm's torques are computed by robosuite's arithmetic, in the same order of
operations, so the states are equal bit for bit.

Source: `OperationalSpaceController.run_controller` of robosuite 1.5.2.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from robosuite.controllers.parts.arm.osc import OperationalSpaceController
from robosuite.environments.robot_env import RobotEnv
from robosuite.robots.fixed_base_robot import FixedBaseRobot
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

ARM, GRIPPER = "right", "right_gripper"  # part names in robosuite


def supports_fast_stepping(env: Any) -> bool:
    """Whether `FastStepper` can step `env`: robots of one arm on a fixed base, OSC of poses with fixed gains, light
    physics.
    """
    is_plain = type(env)._pre_action is RobotEnv._pre_action and bool(env.lite_physics)
    return is_plain and all(_is_supported(robot) for robot in env.robots)


def _is_supported(robot: Any) -> bool:
    if type(robot) is not FixedBaseRobot:
        return False
    parts = robot.part_controllers
    arm = parts.get(ARM)
    return (
        set(parts) in ({ARM, GRIPPER}, {ARM})  # a gripper without fingers has no controller
        and all(robot._enabled_parts[part] for part in parts)
        and type(arm) is OperationalSpaceController
        and (arm.impedance_mode, arm.uncoupling, arm.num_ref_sites, arm.use_ori) == ("fixed", True, 1, True)
        and arm.interpolator_pos is None
        and arm.interpolator_ori is None
        and bool(arm.lite_physics)
    )


class FastStepper:
    """Steps the current model of an environment; create a new one after the model is replaced."""

    def __init__(self, env: Any) -> None:
        self._env, self._model, self._data = env, env.sim.model._model, env.sim.data._data
        self._arms, begin = [], 0
        for robot in env.robots:
            self._arms.append(_FastArm(env, robot, slice(begin, begin + robot.action_dim)))
            begin += robot.action_dim
        self._substeps = int(env.control_timestep / env.model_timestep)

    def step(self, action: NDArray[np.float64]) -> None:
        """Like `env.step(action)`, without observations."""
        model, data, env = self._model, self._data, self._env
        env.timestep += 1
        for i in range(self._substeps):
            mujoco.mj_step1(model, data)
            for arm in self._arms:
                if i == 0:
                    arm.set_goal(action)
                arm.apply_torques()
            mujoco.mj_step2(model, data)
        for arm in self._arms:
            arm.finish()
        env.cur_time += env.control_timestep
        env._post_action(action)


class _FastArm:
    """The arm of one robot; `command` are its values in an action."""

    def __init__(self, env: Any, robot: Any, command: slice) -> None:
        self._model, self._data, self._command = env.sim.model._model, env.sim.data._data, command
        self._controllers = robot.composite_controller
        self._arm, self._gripper = robot.part_controllers[ARM], robot.part_controllers.get(GRIPPER)
        self._site = env.sim.model.site_name2id(self._arm.ref_name)
        self._actuators = robot._ref_actuators_indexes_dict
        self._ctrl_low, self._ctrl_high = np.array(self._model.actuator_ctrlrange).T.copy()
        self._jacobian = np.zeros((6, self._model.nv))
        self._mass_matrix = np.zeros((self._model.nv, self._model.nv))
        # The frame of the actions; that of some arms (IIWA, XArm7) is on a link.
        self._base = env.sim.model.site_name2id(f"{self._arm.naming_prefix}{ARM}_center")
        self._base_moves = self._model.body_weldid[self._model.site_bodyid[self._base]] != 0
        self._base_jacobian = np.zeros((6, self._model.nv))
        self._goal = np.zeros(3), np.eye(3)
        self._is_new_goal = False

    def set_goal(self, action: NDArray[np.float64]) -> None:
        """Set the goal of the arm, and the gripper's command."""
        self._controllers.update_state()
        self._controllers.set_goal(action[self._command])
        if self._gripper is not None:
            self._set_ctrl(GRIPPER, self._gripper.run_controller())
        self._goal, self._is_new_goal = self._goal_pose(), True

    def apply_torques(self) -> None:
        """Set the torques of one physics step."""
        if self._base_moves and not self._is_new_goal:
            self._controllers.update_state()
            self._goal = self._goal_pose()
        self._is_new_goal = False
        self._set_ctrl(ARM, self._torques(*self._goal))

    def finish(self) -> None:
        """Let the controller read the state again before the next goal."""
        self._arm.new_update = True

    def _set_ctrl(self, part: str, values: Any) -> None:
        actuators = self._actuators[part]
        self._data.ctrl[actuators] = np.clip(values, self._ctrl_low[actuators], self._ctrl_high[actuators])

    def _goal_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position [m] (3,) and orientation (3, 3) in the world frame."""
        arm = self._arm
        if arm.input_ref_frame == "base":
            return arm.origin_pos + np.dot(arm.origin_ori, arm.goal_pos), np.dot(arm.origin_ori, arm.goal_ori)
        return arm.goal_pos, arm.goal_ori

    def _torques(self, position: NDArray[np.float64], orientation: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joint torques [N m] (7,) that move the end effector towards a goal pose."""
        model, data, arm = self._model, self._data, self._arm
        mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        jacobian = np.take(self._jacobian, arm.qvel_index, axis=1)
        mujoco.mj_fullM(model, self._mass_matrix, data.qM)
        mass = self._mass_matrix[arm.qvel_index, :][:, arm.qvel_index]

        position_error = position - data.site_xpos[self._site]
        rotation_error = orientation_error(orientation, data.site_xmat[self._site].reshape(3, 3))
        linear_velocity = np.dot(self._jacobian[:3], data.qvel)
        angular_velocity = np.dot(self._jacobian[3:], data.qvel)
        if self._base_moves:
            mujoco.mj_jacSite(model, data, self._base_jacobian[:3], self._base_jacobian[3:], self._base)
            linear_velocity = linear_velocity - np.dot(self._base_jacobian[:3], data.qvel)
            angular_velocity = angular_velocity - np.dot(self._base_jacobian[3:], data.qvel)
        force = position_error * arm.kp[:3] - linear_velocity * arm.kd[:3]
        torque = rotation_error * arm.kp[3:] - angular_velocity * arm.kd[3:]

        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, jacobian, jacobian[:3], jacobian[3:])
        wrench = np.concatenate([np.dot(lambda_pos, force), np.dot(lambda_ori, torque)])
        torques = np.dot(jacobian.T, wrench) + data.qfrc_bias[arm.qvel_index]
        joint_pos, joint_vel = data.qpos[arm.qpos_index], data.qvel[arm.qvel_index]
        return torques + nullspace_torques(mass, nullspace, arm.initial_joint, joint_pos, joint_vel)
