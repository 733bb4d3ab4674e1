"""The simulated robot: a robosuite environment with exact states, seeds and observations.

robosuite 1.5.2 leaves the following to its caller:

- `reset(seed)` reseeds the generator that the placement samplers hold, in place: they would not see a new one;
- after a state is set, every controller is updated, so that the first action starts from the current pose and the
  null-space target is that of this state;
- observations are functions of the state alone (kinematics are refreshed before they are read), so converting
  recorded states gives what a rollout observes;
- images are rendered on request only.

Frames: positions and orientations are in the world frame, of the grip site for the end effector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import SimulatorError
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d, matrix_to_rotvec
from ddp_cli.sim.absolute_actions import verify_absolute_actions
from ddp_cli.sim.environment import check_action_convention, env_args, import_robosuite, make_env
from ddp_cli.sim.grippers import pad_distance
from ddp_cli.sim.model_translation import local_model
from ddp_cli.sim.renderer import Image, PinholeCamera, Renderer, check_render_profile, pinhole_camera
from ddp_cli.sim.task_checks import check_task_observables
from ddp_cli.tasks import ACTION_WIDTHS, Task

Array = NDArray[np.float64]

SUCCESS_HOLD_STEPS = 10
"""Consecutive steps of success after which success counts as held, and an episode of robosuite ends."""

OBJECT_BODIES = {"Lift": "cube_main", "PickPlaceCan": "Can_main", "NutAssemblySquare": "SquareNut_main"}
"""Environment of a built-in task -> MuJoCo body of its object."""


class Simulator:
    """An environment of `task`, rendered with the profile `render` and controlled with `actions` (delta or absolute).

    `lite_physics=False` steps like robosuite up to 1.4.1. UnknownNameError for an unknown profile, convention or
    environment, ConfigError if the environment lacks a camera or observable of the task, SimulatorError if the task
    has none.
    """

    def __init__(self, task: Task, render: str = "fast", actions: str = "delta", lite_physics: bool = True) -> None:
        self.task, self._robosuite = task, task.robosuite
        check_render_profile(render)
        check_action_convention(actions)
        self.render_profile = render
        self.actions = actions
        self.hold_steps = SUCCESS_HOLD_STEPS
        self.is_over, self.score, self.total_reward = False, None, None  # episodes end by the task's horizon
        self._absolute_verified = False
        self._renderer: Renderer | None = None
        self._step_fn: Callable[[Array], Any] | None = None
        self._env = make_env(task, env_args(task, actions), lite_physics)
        widths = {key: len(value) for key, value in self._observables().items()}
        check_task_observables(task, self._env.action_dim, self._env.sim.model.camera_names, widths)

    @property
    def env(self) -> Any:
        """The robosuite environment, for tests and tools. Call `refresh_kinematics` after changing it."""
        return self._env

    @property
    def model(self) -> Any:
        """The current `mujoco.MjModel`; `reset` and `load_xml` may replace it."""
        return self._env.sim.model._model

    @property
    def data(self) -> Any:
        """The current `mujoco.MjData`."""
        return self._env.sim.data._data

    # -- episode ------------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Start a new episode; a seed determines the initial state bit for bit."""
        if self.actions == "absolute" and not self._absolute_verified:
            self._reset()
            verify_absolute_actions(self.eef_pose, self.step)
            self._absolute_verified = True
        self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._reset()

    def _reset(self) -> None:
        self._env.reset()
        self._step_fn = None  # the controllers were replaced, and possibly the model
        self.set_state(self.state())

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """Run one control period of `action`, (7,) delta or (10,) absolute; returns success at its end."""
        action = np.asarray(action, dtype=np.float64)
        if self.actions == "absolute":
            rotvec = matrix_to_rotvec(matrix_from_6d(action[3:9]))
            action = np.concatenate([action[:3], rotvec, action[9:]])
        if self._step_fn is None:
            self._step_fn = self._make_step_fn()
        self._step_fn(action)
        self.refresh_kinematics()
        return self.is_success()

    def _make_step_fn(self) -> Callable[[Array], Any]:
        from ddp_cli.sim.stepping import FastStepper, supports_fast_stepping

        return FastStepper(self._env).step if supports_fast_stepping(self._env) else self._env.step

    def is_success(self) -> bool:
        """Whether the current state passes the success check of the environment."""
        return bool(self._env._check_success())

    def idle_action(self) -> Array:
        """The action that keeps the robot in place: zeros (7,), or the current end-effector pose as the goal (10,)."""
        if self.actions == "delta":
            return np.zeros(ACTION_WIDTHS["delta"])
        position, rotation = self.eef_pose()
        return np.concatenate([position, matrix_to_6d(rotation), [0.0]])

    def absolute_goal(self, action: Array) -> Array:
        """The absolute action (10,) that equals the delta `action` (7,) in the current state."""
        controller = self._env.robots[0].part_controllers["right"]
        controller.set_goal(action[:6])
        controller.new_update = True  # otherwise the next step would reuse the state computed here
        base = self.base_orientation()
        position = controller.origin_pos + base @ controller.goal_pos
        return np.concatenate([position, matrix_to_6d(base @ controller.goal_ori), action[6:]])

    # -- state --------------------------------------------------------------------------------

    def state(self) -> Array:
        """Flattened state (time, qpos, qvel), float64."""
        return np.array(self._env.sim.get_state().flatten())

    def set_state(self, state: Array, gripper_history: Iterable[float] = ()) -> None:
        """Set the simulation to `state` and update the controllers.

        `gripper_history` holds the gripper commands (last action element) of the episode so far: the gripper
        integrates its commands, and the state does not contain the result.
        """
        sim = self._env.sim
        self._check_state_size(state)
        sim.reset()
        sim.set_state_from_flattened(np.asarray(state, dtype=np.float64))
        sim.forward()
        for robot in self._env.robots:
            for part, controller in robot.part_controllers.items():
                controller.update(force=True)
                controller.reset_goal()
                if part in robot.arms:
                    controller.initial_joint = np.array(controller.joint_pos)
            for gripper in robot.gripper.values():
                gripper.current_action = np.zeros(gripper.dof)
                for command in gripper_history:
                    gripper.format_action(np.array([command]))
        self.refresh_kinematics()

    def set_kinematic_state(self, state: Array) -> None:
        """Set the bodies to `state` for observations and rendering; controllers are not updated, so do not step."""
        self._check_state_size(state)
        self._env.sim.set_state_from_flattened(np.asarray(state, dtype=np.float64))
        self.refresh_kinematics()

    def _check_state_size(self, state: Array) -> None:
        size = 1 + self.model.nq + self.model.nv
        if len(state) != size:
            raise SimulatorError(
                f"a state of {len(state)} values does not fit {self._robosuite.env_name} ({size} values).",
                f"Record demos of the task '{self.task.name}', or name the task of this recording.",
            )

    def model_xml(self) -> str:
        """The model as XML, with mesh and texture paths relative to the robosuite package.

        Changes that some resets make to the loaded model are missing (the pose of the door in Door).
        """
        # Not sim.model.get_xml(): it rounds numbers, so the model would not be reproduced exactly.
        xml: str = self._env.model.get_xml()
        root = Path(import_robosuite().__file__).parent
        return xml.replace(str(root), "robosuite")

    def load_xml(self, xml: str) -> None:
        """Load a recorded model, also of robosuite 1.2 to 1.4; its assets are taken from the installed robosuite.

        SimulatorError if it fails.
        """
        import mujoco

        try:
            local_xml = local_model(self._env, xml)
            mujoco.MjModel.from_xml_string(
                local_xml
            )  # robosuite discards its current model before it loads the new one
            self._step_fn = None
            self._env.reset_from_xml_string(local_xml)
        except (ValueError, KeyError, AttributeError, SyntaxError) as e:  # ElementTree's errors are SyntaxErrors
            reason = str(e).splitlines()[0].split(" Available ")[0]  # robosuite lists all names that exist
            raise SimulatorError(f"the recorded model cannot be loaded: {reason.rstrip('.')}.") from e

    def refresh_kinematics(self) -> None:
        """Recompute body, site and camera poses from the current joint positions."""
        # env.step leaves kinematics one physics step old. These three depend on qpos alone and are recomputed by the
        # next step, so they do not affect the trajectory.
        import mujoco

        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    # -- observations -------------------------------------------------------------------------

    def low_dim(self, keys: Iterable[str] | None = None) -> dict[str, NDArray[np.float32]]:
        """Low-dimensional observations of the current state, float32 (width,) each; by default all of the task."""
        obs = self._observables()
        try:
            if parts := self._robosuite.object:
                obs["object"] = np.concatenate([obs[name] for name in parts])
            return {k: obs[k].astype(np.float32) for k in (self.task.vectors("state") if keys is None else keys)}
        except KeyError as e:
            raise SimulatorError(
                f"{self._robosuite.env_name} does not have the observable {e} in every episode.",
                "Remove it from the task.",
            ) from e

    def _observables(self) -> dict[str, NDArray[Any]]:
        # Relative poses are computed from the object pose of the previous update: update twice.
        self._env._update_observables(force=True)
        return {k: np.atleast_1d(v) for k, v in self._env._get_observations(force_update=True).items()}

    def image(self, key: str, size: int | None = None) -> Image:
        """The upright image of the camera with image key `key`, uint8 (height, width, 3), or (size, size, 3)."""
        camera = self.task.schema.cameras[key]
        height, width = (camera.height, camera.width) if size is None else (size, size)
        if self._renderer is None or not self._renderer.is_compatible(self.model):
            self._close_renderer()
            self._renderer = Renderer(self.model, self.render_profile)
        return self._renderer.render(self.model, self.data, self._robosuite.cameras[key], height, width)

    def camera(self, key: str) -> PinholeCamera:
        """Current pose and field of view of the camera with image key `key`."""
        return pinhole_camera(self.model, self.data, self._robosuite.cameras[key])

    def observe(self, obs: str = "image") -> dict[str, NDArray[Any]]:
        """Observations of an `image` or `state` policy: uint8 (height, width, 3) and float32 (width,)."""
        images: dict[str, NDArray[Any]] = {k: self.image(k) for k in self.task.images(obs)}
        return images | self.low_dim(self.task.vectors(obs))

    def eef_pose(self) -> tuple[Array, Array]:
        """Position [m] (3,) and orientation (3, 3) of the end effector."""
        site = self._env.robots[0].eef_site_id["right"]
        return np.array(self.data.site_xpos[site]), np.array(self.data.site_xmat[site]).reshape(3, 3)

    def gripper_opening(self) -> tuple[float, float]:
        """Distance between the gripper's fingers [m] and its rate of change [m/s]; of a Panda by its joints, of other
        arms between the centres of the finger pads.
        """
        if self._robosuite.robot != "Panda":
            return pad_distance(self._env)
        data, joints = self._env.sim.data, self._env.robots[0].gripper["right"].joints
        left_position, right_position = (data.get_joint_qpos(joint) for joint in joints)
        left_velocity, right_velocity = (data.get_joint_qvel(joint) for joint in joints)
        return float(left_position - right_position), float(left_velocity - right_velocity)

    def base_orientation(self) -> Array:
        """Orientation (3, 3) of the arm's base: the frame of delta actions."""
        return np.array(self._env.robots[0].part_controllers["right"].origin_ori)

    def object_pose(self) -> tuple[Array, Array]:
        """Position [m] (3,) and orientation (3, 3) of the object of a built-in task."""
        body = self._env.sim.model.body_name2id(OBJECT_BODIES[self._robosuite.env_name])
        return np.array(self.data.xpos[body]), np.array(self.data.xmat[body]).reshape(3, 3)

    def target_position(self) -> Array:
        """Target position [m] (3,) of the object of a built-in task: peg, compartment, or 10 cm above the object."""
        if self._robosuite.env_name == "NutAssemblySquare":
            return np.array(self.data.xpos[self._env.peg1_body_id])
        if self._robosuite.env_name == "PickPlaceCan":
            return np.array(self._env.target_bin_placements[self._env.object_to_id["can"]])
        return self.object_pose()[0] + np.array([0.0, 0.0, 0.1])

    def close(self) -> None:
        """Release the renderer and the environment."""
        self._close_renderer()
        self._env.close()

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
