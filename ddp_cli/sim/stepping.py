"""One control period of the simulator, without what nobody looks at.

In every one of the 25 physics steps that an action lasts, robosuite looks names up, computes each Jacobian
several times and brings observables up to date that are read once, if at all: three quarters of the time.
Here its controllers set the goal and close the gripper once; the torques of the arm are computed by its
arithmetic, operation by operation in its order, so that the states are equal bit for bit.

Source of the arithmetic: `OperationalSpaceController.run_controller` of robosuite 1.5.2.
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

ARM, GRIPPER = "right", "right_gripper"  # robosuite's names of the parts


def can_step(env: Any) -> bool:
    """Whether `env` is of the kind that `Stepper` knows: one Panda-like arm on a fixed base, OSC with fixed gains."""
    if len(env.robots) != 1 or type(env.robots[0]) is not FixedBaseRobot:
        return False
    parts = env.robots[0].part_controllers
    arm = parts.get(ARM)
    return (
        type(env)._pre_action is RobotEnv._pre_action
        and set(parts) == {ARM, GRIPPER}
        and all(env.robots[0]._enabled_parts[part] for part in parts)
        and type(arm) is OperationalSpaceController
        and (arm.impedance_mode, arm.uncoupling, arm.num_ref_sites) == ("fixed", True, 1)
        and arm.interpolator_pos is None
        and arm.interpolator_ori is None
        and bool(env.lite_physics and arm.lite_physics)
    )


class Stepper:
    """Steps one model of one environment; a model that is loaded anew needs a new one."""

    def __init__(self, env: Any) -> None:
        self._env, self._model, self._data = env, env.sim.model._model, env.sim.data._data
        robot = env.robots[0]
        self._controllers = robot.composite_controller
        self._arm, self._gripper = robot.part_controllers[ARM], robot.part_controllers[GRIPPER]
        self._site = env.sim.model.site_name2id(self._arm.ref_name)
        indexes = robot._ref_actuators_indexes_dict
        self._joints, self._fingers = indexes[ARM], indexes[GRIPPER]
        self._low, self._high = np.array(self._model.actuator_ctrlrange).T.copy()
        self._jacobian = np.zeros((6, self._model.nv))
        self._mass = np.zeros((self._model.nv, self._model.nv))
        self._substeps = int(env.control_timestep / env.model_timestep)

    def step(self, action: NDArray[np.float64]) -> None:
        """`env.step(action)`, which would also return observations."""
        model, data, env = self._model, self._data, self._env
        env.timestep += 1
        mujoco.mj_step1(model, data)
        self._controllers.update_state()
        self._controllers.set_goal(action)
        self._actuate(self._fingers, self._gripper.run_controller())
        goal = self._goal()
        for i in range(self._substeps):
            if i > 0:
                mujoco.mj_step1(model, data)
            self._actuate(self._joints, self._torques(*goal))
            mujoco.mj_step2(model, data)
        self._arm.new_update = True
        env.cur_time += env.control_timestep
        env._post_action(action)

    def _actuate(self, which: Any, values: Any) -> None:
        self._data.ctrl[which] = np.clip(values, self._low[which], self._high[which])

    def _goal(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (3,) and orientation (3, 3) in the world; they stay for the period, as the base does."""
        arm = self._arm
        if arm.input_ref_frame == "base":
            return arm.origin_pos + np.dot(arm.origin_ori, arm.goal_pos), np.dot(arm.origin_ori, arm.goal_ori)
        return arm.goal_pos, arm.goal_ori

    def _torques(self, position: NDArray[np.float64], orientation: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joint torques [N m] (7,) that pull the hand towards a pose."""
        model, data, arm = self._model, self._data, self._arm
        mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        jacobian = np.take(self._jacobian, arm.qvel_index, axis=1)
        mujoco.mj_fullM(model, self._mass, data.qM)
        mass = self._mass[arm.qvel_index, :][:, arm.qvel_index]

        off = position - data.site_xpos[self._site]
        turned = orientation_error(orientation, data.site_xmat[self._site].reshape(3, 3))
        speed, turn = np.dot(self._jacobian[:3], data.qvel), np.dot(self._jacobian[3:], data.qvel)
        force = off * arm.kp[:3] - speed * arm.kd[:3]
        torque = turned * arm.kp[3:] - turn * arm.kd[3:]

        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, jacobian, jacobian[:3], jacobian[3:])
        wrench = np.concatenate([np.dot(lambda_pos, force), np.dot(lambda_ori, torque)])
        torques = np.dot(jacobian.T, wrench) + data.qfrc_bias[arm.qvel_index]
        joints, speeds = data.qpos[arm.qpos_index], data.qvel[arm.qvel_index]
        return torques + nullspace_torques(mass, nullspace, arm.initial_joint, joints, speeds)
