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

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import SimulatorError
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d, matrix_to_rotvec
from ddp_cli.schema import action_slices
from ddp_cli.sim.absolute_actions import verify_absolute_actions
from ddp_cli.sim.arms import find_arms
from ddp_cli.sim.cameras import Cameras
from ddp_cli.sim.environment import check_action_convention, env_args, import_robosuite, make_env
from ddp_cli.sim.exactness import is_stepping_exact
from ddp_cli.sim.model_translation import local_model
from ddp_cli.sim.renderer import Image, PinholeCamera, pinhole_camera
from ddp_cli.sim.task_checks import check_task_observables
from ddp_cli.tasks import Task

Array = NDArray[np.float64]

SUCCESS_HOLD_STEPS = 10
"""Consecutive steps of success after which success counts as held, and an episode of robosuite ends."""


class Simulator:
    """An environment of `task`, rendered with the profile `render` and controlled with `actions`, one of the task's
    conventions.

    `lite_physics=False` steps like robosuite up to 1.4.1. UnknownNameError for an unknown profile, convention or
    environment, ConfigError if the environment lacks a camera or observable of the task, SimulatorError if the task
    has none.
    """

    def __init__(self, task: Task, render: str = "fast", actions: str = "delta", lite_physics: bool = True) -> None:
        self.task, self._robosuite = task, task.robosuite
        self._cameras = Cameras(task, render)
        check_action_convention(task, actions)
        self.render_profile = render
        self.actions = actions
        self.hold_steps = SUCCESS_HOLD_STEPS
        self.is_over, self.score, self.total_reward = False, None, None  # episodes end by the task's horizon
        self._absolute_verified = False
        self._step_fn: Callable[[Array], Any] | None = None
        self._env = make_env(task, env_args(task, actions), lite_physics)
        self._arms = find_arms(self._env)
        self._parts = task.action_parts(actions)
        widths = {key: len(value) for key, value in self.observables().items()}
        check_task_observables(task, self._env.action_dim, self._env.sim.model.camera_names, widths)
        self.steps_fast = is_stepping_exact(self, compare=not task.is_variant)
        """Whether steps leave out robosuite's overhead, which takes most of their time."""

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

    @property
    def n_arms(self) -> int:
        """Arms of all robots."""
        return len(self._arms)

    # -- episode ------------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Start a new episode; a seed determines the initial state bit for bit."""
        if self.actions == "absolute" and not self._absolute_verified:
            self._reset()
            verify_absolute_actions(self._parts, self.idle_action, self.step)
            self._absolute_verified = True
        self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._reset()

    def _reset(self) -> None:
        self._env.reset()
        self._step_fn = None  # the controllers were replaced, and possibly the model
        self.set_state(self.state())

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """Run one control period of `action` (Da,), in the convention `actions`; returns success at its end."""
        action = np.asarray(action, dtype=np.float64)
        if self.actions == "absolute":  # robosuite takes rotation vectors
            action = np.concatenate([
                matrix_to_rotvec(matrix_from_6d(action[values])) if part.rotation == "rotation-6d" else action[values]
                for part, values in zip(self._parts, action_slices(self._parts), strict=True)
            ])  # fmt: skip
        if self._step_fn is None:
            self._step_fn = self._make_step_fn()
        self._step_fn(action)
        self.refresh_kinematics()
        return self.is_success()

    def _make_step_fn(self) -> Callable[[Array], Any]:
        from ddp_cli.sim.stepping import FastStepper

        return FastStepper(self._env).step if self.steps_fast else self._env.step

    def is_success(self) -> bool:
        """Whether the current state passes the success check of the environment."""
        return bool(self._env._check_success())

    def idle_action(self) -> Array:
        """The action (Da,) that keeps the robots in place: zeros, or the current end-effector poses as goals."""
        idle = np.zeros(self.task.schema.action_dim)
        return self._with_poses(idle, [arm.eef_pose() for arm in self._arms]) if self.actions == "absolute" else idle

    def absolute_goal(self, action: Array) -> Array:
        """The absolute action (Da,) that equals the delta `action` in the current state."""
        values = {name: action[x] for name, x in self.task.schema.action_slices().items()}
        goals = [
            arm.goal(np.concatenate([values[f"{arm.prefix}position"], values[f"{arm.prefix}rotation"]]))
            for arm in self._arms
        ]
        return self._with_poses(action, goals)

    def _with_poses(self, action: Array, poses: list[tuple[Array, Array]]) -> Array:
        """The absolute action of the end-effector `poses`, with the grippers of the delta `action`."""
        values = {name: action[x] for name, x in self.task.schema.action_slices().items()}
        for arm, (position, rotation) in zip(self._arms, poses, strict=True):
            values |= {f"{arm.prefix}position": position, f"{arm.prefix}rotation": matrix_to_6d(rotation)}
        return np.concatenate([values[part.name] for part in self.task.action_parts("absolute")])

    # -- state --------------------------------------------------------------------------------

    def state(self) -> Array:
        """Flattened state (time, qpos, qvel), float64."""
        return np.array(self._env.sim.get_state().flatten())

    def set_state(self, state: Array, past_actions: Sequence[Array] | Array = ()) -> None:
        """Set the simulation to `state` and update the controllers.

        `past_actions` are the actions of the episode so far, as robosuite takes them: grippers integrate their
        commands, and the state does not contain the result.
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
        for arm in self._arms:
            arm.restart_gripper(action[arm.gripper_command] for action in past_actions)
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
        obs = self.observables()
        try:
            if parts := self._robosuite.object:
                obs["object"] = np.concatenate([obs[name] for name in parts])
            return {k: obs[k].astype(np.float32) for k in (self.task.vectors("state") if keys is None else keys)}
        except KeyError as e:
            raise SimulatorError(
                f"{self._robosuite.env_name} does not have the observable {e} in every episode.",
                "Remove it from the task.",
            ) from e

    def positions(self) -> dict[str, list[float]]:
        """The positions [m] (3,) among the observables of the task's object, by their names."""
        # Relative ones, such as gripper_to_cube_pos, are none of a place.
        names = [name for name, width in self._robosuite.object.items() if width == 3 and _is_place(name)]
        obs = self.observables() if names else {}
        return {name: [round(float(x), 5) for x in obs[name]] for name in names if name in obs}

    def observables(self) -> dict[str, NDArray[Any]]:
        """All observables of robosuite in the current state, (width,) each."""
        # Relative poses are computed from the object pose of the previous update: update twice.
        self._env._update_observables(force=True)
        return {k: np.atleast_1d(v) for k, v in self._env._get_observations(force_update=True).items()}

    def image(self, key: str, size: int | None = None, cull: bool = True) -> Image:
        """The upright image of the camera with image key `key`, uint8 (height, width, 3), or (size, size, 3).

        Without `cull`, geoms that cannot be seen are rendered, too.
        """
        return self._cameras.image(self.model, self.data, key, size, cull)

    def culls(self, key: str) -> bool:
        """Whether geoms that the camera `key` cannot see are left out of its images, as far as they were compared."""
        return self._cameras.culls(key)

    def camera(self, key: str) -> PinholeCamera:
        """Current pose and field of view of the camera with image key `key`."""
        return pinhole_camera(self.model, self.data, self._robosuite.cameras[key])

    def observe(self, obs: str = "image") -> dict[str, NDArray[Any]]:
        """Observations of an `image` or `state` policy: uint8 (height, width, 3) and float32 (width,)."""
        images: dict[str, NDArray[Any]] = {k: self.image(k) for k in self.task.images(obs)}
        return images | self.low_dim(self.task.vectors(obs))

    def eef_pose(self, arm: int = 0) -> tuple[Array, Array]:
        """Position [m] (3,) and orientation (3, 3) of an end effector."""
        return self._arms[arm].eef_pose()

    def gripper_opening(self, arm: int = 0) -> tuple[float, float]:
        """Distance between a gripper's fingers [m] and its rate of change [m/s]; zeros without fingers."""
        return self._arms[arm].gripper_opening()

    def base_orientation(self, arm: int = 0) -> Array:
        """Orientation (3, 3) of the frame of an arm's delta actions."""
        return self._arms[arm].frame()

    def close(self) -> None:
        """Release the renderer and the environment."""
        self._cameras.close()
        self._env.close()


def _is_place(name: str) -> bool:
    return name.endswith("_pos") and "_to_" not in name
