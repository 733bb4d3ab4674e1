"""The simulated robot; with stepping.py the only user of robosuite (and, with renderer.py, of mujoco).

What robosuite 1.5.2 leaves to its caller is done here once:

- `reset(seed)` reseeds the generator that the placement samplers hold (a new one would not reach them);
- after a state is set, every controller is brought up to date, so that the first action starts from
  the pose that is there, and the null-space target is the one of that state;
- observations are functions of the state alone (kinematics are refreshed before reading them), so a
  conversion that sets recorded states sees what a rollout sees;
- pictures are drawn only when asked for.
"""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import SimulatorError, close_match
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d, matrix_to_rotvec, rotation_angle
from ddp_cli.sim.renderer import Image, PinholeCamera, Renderer, camera_view, check_profile, choose_gl_backend
from ddp_cli.sim.task_checks import check_env_name, check_task_observables
from ddp_cli.tasks import ACTIONS, CONTROL_HZ, IMAGE_SIZE, Task

Array = NDArray[np.float64]


def _import_robosuite() -> Any:
    if "robosuite" in sys.modules:
        return sys.modules["robosuite"]
    choose_gl_backend()
    logging.disable(logging.WARNING)  # robosuite greets with five warnings about optional parts
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import robosuite
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    except (ImportError, AttributeError, OSError, RuntimeError) as e:
        raise SimulatorError(f"robosuite cannot be loaded: {e}.", "Run `ddp doctor`.") from e
    finally:
        logging.disable(logging.NOTSET)
    return robosuite


def versions() -> dict[str, str]:
    """Versions that decide what an episode looks like: robosuite and mujoco."""
    return {name: importlib.metadata.version(name) for name in ("robosuite", "mujoco")}


def check_actions(name: str) -> None:
    """SimulatorError unless `name` is an action convention."""
    if name not in ACTIONS:
        raise SimulatorError(f"unknown actions '{name}'{close_match(name, ACTIONS)}", f"Valid: {', '.join(ACTIONS)}.")


def env_args(task: Task, actions: str = "delta") -> dict[str, Any]:
    """Environment arguments in robomimic's form (`env_name`, `env_version`, `type`, `env_kwargs`)."""
    _import_robosuite()
    from robosuite.controllers import load_composite_controller_config

    controller = load_composite_controller_config(robot="Panda")
    if actions == "absolute":  # robosuite 1.5 ignores the `control_delta` of older configurations
        controller["body_parts"]["right"] |= {"input_type": "absolute", "input_ref_frame": "world"}
    return {
        "env_name": task.env_name,
        "env_version": versions()["robosuite"],
        "type": 1,  # robomimic's number for robosuite
        "env_kwargs": {
            "robots": ["Panda"],
            "controller_configs": controller,
            "control_freq": CONTROL_HZ,
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "use_camera_obs": False,
            "use_object_obs": True,
            "ignore_done": True,
            "lite_physics": True,
            "reward_shaping": False,
        },
    }


class Simulator:
    """One environment of `task`. `render` names the profile that its cameras use, `actions` the convention
    that `step` takes; without `lite_physics` it steps as robosuite did until 1.4.1. ConfigError when the task
    asks for what the environment does not have.
    """

    def __init__(self, task: Task, render: str = "fast", actions: str = "delta", lite_physics: bool = True) -> None:
        check_profile(render)
        check_actions(actions)
        robosuite = _import_robosuite()
        self.task = task
        self.profile = render
        self.actions = actions
        self._obeys = actions == "delta"
        self._renderer: Renderer | None = None
        self._step: Callable[[Array], Any] | None = None
        kwargs = env_args(task, actions)["env_kwargs"] | {"lite_physics": lite_physics}
        check_env_name(task.env_name, robosuite.ALL_ENVIRONMENTS)
        try:
            # Where only the state differs per episode, a soft reset is exact and 100x faster.
            self._env = robosuite.make(task.env_name, **kwargs, hard_reset=task.model_varies, seed=0)
        except (AssertionError, AttributeError, TypeError, ValueError) as e:
            found = ", ".join(f"{k} {v}" for k, v in versions().items())
            raise SimulatorError(f"cannot make {task.env_name} with {found}.", "Run `ddp doctor`.") from e
        widths = {key: len(value) for key, value in self._observables().items()}
        check_task_observables(task, self._env.action_dim, self._env.sim.model.camera_names, widths)

    # -- time ---------------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """A new episode. The same seed gives the same placement, bit for bit."""
        if not self._obeys:
            self._check_absolute()
        self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._reset()

    def _reset(self) -> None:
        self._env.reset()
        self._step = None  # the controllers are new ones, and perhaps the model
        self.set_state(self.state())

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """One control period (1/20 s) of `action` (7,), or (10,) if absolute; returns success at its end."""
        action = np.asarray(action, dtype=np.float64)
        if self.actions == "absolute":
            turn = matrix_to_rotvec(matrix_from_6d(action[3:9]))
            action = np.concatenate([action[:3], turn, action[9:]])
        if self._step is None:
            self._step = self._stepper()
        self._step(action)
        self._refresh()
        return self.success()

    def _stepper(self) -> Callable[[Array], Any]:
        from ddp_cli.sim.stepping import Stepper, can_step

        return Stepper(self._env).step if can_step(self._env) else self._env.step

    def success(self) -> bool:
        """The task's own check, on the present state."""
        return bool(self._env._check_success())

    def goal(self, action: Array) -> Array:
        """The goal (10,) that the delta `action` (7,) sets in the present state, in the world frame."""
        controller = self._env.robots[0].part_controllers["right"]
        controller.set_goal(action[:6])
        controller.new_update = True  # otherwise the next step would start from what was computed here
        position = controller.origin_pos + self.base() @ controller.goal_pos
        return np.concatenate([position, matrix_to_6d(self.base() @ controller.goal_ori), action[6:]])

    def _check_absolute(self) -> None:
        """Asks for a place 5 cm away and looks if the hand goes there. A silent mismatch of conventions
        between versions would score 0% and say nothing.
        """
        self._obeys = True
        self._reset()
        here, rotation = self.hand()
        there = here + np.array([0.03, 0.0, -0.04])
        for _ in range(15):
            self.step(np.concatenate([there, matrix_to_6d(rotation), [-1.0]]))
        off = np.linalg.norm(self.hand()[0] - there)
        turned = rotation_angle(self.hand()[1], rotation)
        if off > 0.01 or turned > 0.1:
            self._obeys = False
            raise SimulatorError(
                f"absolute actions do not work here: asked to move 5 cm, the hand ended {off * 100:.1f} cm off, "
                f"turned by {turned:.2f} rad.",
                "Run `ddp doctor`: another robosuite than 1.5.2?",
            )

    # -- state --------------------------------------------------------------------------------

    def state(self) -> Array:
        """Flat state (time, qpos, qvel), float64."""
        return np.array(self._env.sim.get_state().flatten())

    def set_state(self, state: Array, told: Iterable[float] = ()) -> None:
        """Puts the simulation into `state`, with controllers that know about it. The gripper goes on from what it
        was `told` before, the last number of the actions so far: it closes by steps, which no state holds.
        """
        sim = self._env.sim
        self._check_size(state)
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
                for number in told:
                    gripper.format_action(np.array([number]))
        self._refresh()

    def show_state(self, state: Array) -> None:
        """Moves the bodies to `state` to be looked at; not a state to step from."""
        self._check_size(state)
        self._env.sim.set_state_from_flattened(np.asarray(state, dtype=np.float64))
        self._refresh()

    def _check_size(self, state: Array) -> None:
        size = 1 + self._env.sim.model.nq + self._env.sim.model.nv
        if len(state) != size:
            raise SimulatorError(
                f"a state of {len(state)} values does not fit {self.task.env_name} ({size})",
                f"Record it with the task '{self.task.name}' or name the right task.",
            )

    def model_xml(self) -> str:
        """The model, with mesh and texture files relative to robosuite's own folder. It lacks what some resets
        change after loading it (where Door's door stands).
        """
        # Not sim.model.get_xml(): that text is rounded, and the model made of it is another one.
        xml: str = self._env.model.get_xml()
        root = Path(_import_robosuite().__file__).parent
        return xml.replace(str(root), "robosuite")

    def load_xml(self, xml: str) -> None:
        """Replaces the model by a recorded one (files are looked up in the installed robosuite)."""
        import mujoco

        try:
            here = self._env.edit_model_xml(xml)
            mujoco.MjModel.from_xml_string(here)  # robosuite gives up the present model before it tries
            self._step = None
            self._env.reset_from_xml_string(here)
        except (ValueError, KeyError, AttributeError, SyntaxError) as e:  # ElementTree's errors are SyntaxErrors
            raise SimulatorError(f"the recorded model does not load: {str(e).splitlines()[0]}.") from e

    def _refresh(self) -> None:
        # env.step ends with kinematics one physics step old; these three depend on qpos alone and the
        # next step computes them again, so calling them changes no trajectory.
        import mujoco

        model, data = self._env.sim.model._model, self._env.sim.data._data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)

    # -- looking ------------------------------------------------------------------------------

    def low_dim(self, keys: Iterable[str] | None = None) -> dict[str, NDArray[np.float32]]:
        """Low-dimensional observations of the present state, float32 (width,) each; all that the task names."""
        obs = self._observables()
        try:
            if self.task.object:
                obs["object"] = np.concatenate([obs[name] for name in self.task.object])
            return {k: obs[k].astype(np.float32) for k in (self.task.vectors("state") if keys is None else keys)}
        except KeyError as e:
            raise SimulatorError(
                f"{self.task.env_name} does not have {e} in every episode.", "Leave it out of the task."
            ) from e

    def _observables(self) -> dict[str, NDArray[Any]]:
        # The relative poses are computed from the object's pose of the update before: update twice.
        self._env._update_observables(force=True)
        return {k: np.atleast_1d(v) for k, v in self._env._get_observations(force_update=True).items()}

    def image(self, key: str, size: int = IMAGE_SIZE) -> Image:
        """The picture of the camera behind `key`, upright, uint8 (size, size, 3)."""
        model, data = self._env.sim.model._model, self._env.sim.data._data
        if self._renderer is None or not self._renderer.fits(model):
            self._close_renderer()
            self._renderer = Renderer(model, self.profile)
        return self._renderer.draw(model, data, self.task.cameras[key], size)

    def view(self, key: str) -> PinholeCamera:
        """Where the camera behind `key` now is, and what it sees."""
        return camera_view(self._env.sim.model._model, self._env.sim.data._data, self.task.cameras[key])

    def observe(self, obs: str = "image") -> dict[str, NDArray[Any]]:
        """Everything an `image` or `state` policy sees: uint8 (84, 84, 3) and float32 (width,)."""
        seen: dict[str, NDArray[Any]] = {k: self.image(k) for k in self.task.images(obs)}
        return seen | self.low_dim(self.task.vectors(obs))

    def hand(self) -> tuple[Array, Array]:
        """Grip-site position [m] (3,) and orientation (3, 3), world frame."""
        site = self._env.robots[0].eef_site_id["right"]
        data = self._env.sim.data
        return np.array(data.site_xpos[site]), np.array(data.site_xmat[site]).reshape(3, 3)

    def fingers(self) -> tuple[float, float]:
        """The gap between the gripper's fingers [m] and how fast it grows [m/s]."""
        data, names = self._env.sim.data, self._env.robots[0].gripper["right"].joints
        one, other = (data.get_joint_qpos(name) for name in names)
        here, there = (data.get_joint_qvel(name) for name in names)
        return float(one - other), float(here - there)

    def base(self) -> Array:
        """Orientation (3, 3) of the arm's base in the world: the frame of delta actions."""
        return np.array(self._env.robots[0].part_controllers["right"].origin_ori)

    def object(self) -> tuple[Array, Array]:
        """Position [m] (3,) and orientation (3, 3) of a built-in task's object, world frame."""
        name = {"lift": "cube_main", "can": "Can_main", "square": "SquareNut_main"}[self.task.name]
        body = self._env.sim.model.body_name2id(name)
        data = self._env.sim.data
        return np.array(data.body_xpos[body]), np.array(data.body_xmat[body]).reshape(3, 3)

    def target(self) -> Array:
        """Where a built-in task's object belongs [m] (3,): the peg, the can's compartment, or above the table."""
        if self.task.name == "square":
            return np.array(self._env.sim.data.body_xpos[self._env.peg1_body_id])
        if self.task.name == "can":
            return np.array(self._env.target_bin_placements[self._env.object_to_id["can"]])
        return self.object()[0] + np.array([0.0, 0.0, 0.1])

    def close(self) -> None:
        """Frees the renderer and the environment."""
        self._close_renderer()
        self._env.close()

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
