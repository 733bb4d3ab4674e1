"""Scripted policies that collect demonstrations for lift, can and square; that of two arms is in two_arm_lift.py.

A scripted policy is a function of the current scene: its action follows from the poses of end effector, gripper and
object, without a plan, clock or internal state. Heights and speeds depend smoothly on distances (the end effector
descends as it gets above the object), so there is no hidden variable for an imitating policy to infer.

Variety, and examples of recovery from errors, come from disturbances: correlated noise, occasional pushes and gripper
slips. They are added to the executed actions; the intended actions are recorded beside them (Laskey et al. 2017,
"DART: noise injection for robust imitation learning").

Angles [rad], lengths [m], world frame. The yaw of the end effector is 0 when its fingers open along world y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ddp_cli.errors import ConfigError
from ddp_cli.rotation import Array
from ddp_cli.sim.disturbances import Disturbances
from ddp_cli.sim.grippers import GRIPPERS
from ddp_cli.sim.motion import (
    CLOSED,
    OPEN,
    YAW_RANGE,
    Z_AXIS,
    MotionTarget,
    SceneState,
    eef_yaw,
    ramp,
    target_to_action,
    wrap_angle,
    yaw_of,
)
from ddp_cli.sim.simulator import Simulator
from ddp_cli.sim.two_arm_lift import observe_two_arm_scene, two_arm_lift_policy
from ddp_cli.tasks import TASKS, Task

SCRIPT_VERSION = 3  # a recording can be resumed by the same version only


OBJECT_BODIES = {"Lift": "cube_main", "PickPlaceCan": "Can_main", "NutAssemblySquare": "SquareNut_main"}
"""Environment -> MuJoCo body of its object."""


def object_pose(sim: Simulator) -> tuple[Array, Array]:
    """Position [m] (3,) and orientation (3, 3) of the object of lift, can or square."""
    body = sim.env.sim.model.body_name2id(OBJECT_BODIES[sim.task.robosuite.env_name])
    return np.array(sim.data.xpos[body]), np.array(sim.data.xmat[body]).reshape(3, 3)


def target_position(sim: Simulator) -> Array:
    """Target position [m] (3,) of the object: peg, compartment, or 10 cm above the object."""
    env = sim.env
    if sim.task.robosuite.env_name == "NutAssemblySquare":
        return np.array(sim.data.xpos[env.peg1_body_id])
    if sim.task.robosuite.env_name == "PickPlaceCan":
        return np.array(env.target_bin_placements[env.object_to_id["can"]])
    return object_pose(sim)[0] + 0.1 * Z_AXIS


def observe_scene(sim: Simulator) -> SceneState:
    """The current scene of a built-in task."""
    position, rotation = sim.eef_pose()
    opening, velocity = sim.gripper_opening()
    fingers = GRIPPERS[sim.task.robosuite.robots[0]]
    return SceneState(
        position, rotation, eef_yaw(rotation), opening, velocity, *object_pose(sim), target_position(sim), fingers
    )


# -- motions --------------------------------------------------------------------------------------


def _approach_and_grasp(s: SceneState, point: Array, yaw: float, tolerance: float = 0.012) -> MotionTarget:
    """Move an empty gripper above `point`, descend, close."""
    offset = point - s.eef_pos
    lateral, yaw_error = float(np.linalg.norm(offset[:2])), abs(yaw - s.eef_yaw)
    is_closing = s.fingers.closed < s.gripper_opening < s.fingers.wide and s.gripper_velocity < 0.03
    if is_closing and np.linalg.norm(offset) < 0.03:
        return MotionTarget(offset, yaw, CLOSED, near_contact=True)
    height = float(np.clip(3.0 * (lateral - 0.006) + 0.3 * (yaw_error - 0.08), 0.0, 0.09))
    translation = offset + Z_AXIS * height
    if -offset[2] < height - 0.04:  # too low for this lateral distance: rise first
        translation[:2] *= 0.3
    # A gripper that closed on nothing is not open: it opens again.
    in_place = np.linalg.norm(offset) < tolerance and yaw_error < 0.12 and s.gripper_opening > s.fingers.ready
    near_contact = bool(-offset[2] < 0.05 and lateral < 0.04)
    return MotionTarget(translation, yaw, CLOSED if in_place else OPEN, near_contact)


def _release_and_retreat(s: SceneState, height: float) -> MotionTarget:
    """Open the gripper, and rise to `height` as the fingers clear the object."""
    clearance = ramp(s.gripper_opening, s.fingers.ready, s.fingers.wide - 0.001)
    translation = Z_AXIS * clearance * np.clip(height - s.eef_pos[2], 0.0, 0.1)
    return MotionTarget(translation, s.eef_yaw, OPEN, near_contact=clearance < 1.0)


# -- policies of the tasks ------------------------------------------------------------------------


def _lift_policy(s: SceneState) -> MotionTarget:
    if s.is_grasped(s.object_pos):
        return MotionTarget(Z_AXIS * np.clip(0.95 - s.object_pos[2], -0.05, 0.1), s.eef_yaw, CLOSED)
    yaw = s.eef_yaw + wrap_angle(yaw_of(s.object_rotation) - s.eef_yaw, np.pi / 2)
    return _approach_and_grasp(s, s.object_pos, yaw)


def _can_policy(s: SceneState) -> MotionTarget:
    # The exact centre of the compartment is out of reach.
    offset = s.target_pos[:2] - [0.04, 0.055] - s.object_pos[:2]
    is_inside = bool(np.all(np.abs(offset) < 0.06))
    if is_inside and s.object_pos[2] < 0.915:
        return _release_and_retreat(s, 1.1)
    point = s.object_pos + 0.015 * Z_AXIS
    if not s.is_grasped(point, 0.045):
        return _approach_and_grasp(s, point, 0.0, tolerance=0.014)
    descend = np.linalg.norm(offset) < 0.02 or (is_inside and s.object_pos[2] < 0.96)
    lateral = offset * (1.0 if descend else ramp(s.object_pos[2], 0.92, 0.98))
    return MotionTarget(np.array([*lateral, (0.90 if descend else 1.0) - s.object_pos[2]]), 0.0, CLOSED)


def _square_policy(s: SceneState) -> MotionTarget:
    nut, offset = s.object_pos, s.target_pos[:2] - s.object_pos[:2]
    distance = float(np.linalg.norm(offset))
    if nut[2] < 0.92 and distance < 0.02:
        return _release_and_retreat(s, 1.05)
    handle = nut + s.object_rotation[:, 0] * 0.06
    if not s.is_grasped(handle):
        return _approach_and_grasp(s, handle, _grasp_yaw(s))
    final_yaw = _placement_yaw(s)
    yaw_error = abs(final_yaw - s.eef_yaw)
    on_peg = nut[2] < 0.955 and distance < 0.015  # below the top of the peg, and around it
    is_aligned = on_peg or (distance < 0.006 and yaw_error < 0.07)
    height = 0.895 if is_aligned else 0.975 + 0.03 * max(ramp(distance, 0.01, 0.06), ramp(yaw_error, 0.1, 0.5))
    transport_height = 0.965 if distance < 0.12 else 0.94
    lateral = offset * (1.0 if on_peg else ramp(nut[2], transport_height - 0.03, transport_height))
    return MotionTarget(
        np.array([*lateral, height - nut[2]]), final_yaw if nut[2] > 0.9 else s.eef_yaw, CLOSED,
        near_contact=distance < 0.05, max_speed=0.6 if is_aligned else 1.0,
    )  # fmt: skip


HANDLE_DIRECTIONS = ((np.pi, 0.0), (-np.pi / 2, 0.9), (np.pi / 2, 1.5))
"""Yaw of the nut's handle on the peg, and the cost of it: -x is free; -y and +y are harder to reach."""


def _grasp_yaw(s: SceneState) -> float:
    """Yaw of the end effector on the nut's handle, with the least rotation now and at the peg."""
    nut, best = yaw_of(s.object_rotation), (np.inf, s.eef_yaw)
    for half_turns in range(-3, 4):
        grasp = nut + half_turns * np.pi
        for direction, cost in HANDLE_DIRECTIONS:
            for turns in range(-2, 3):
                final = direction + half_turns * np.pi + turns * 2 * np.pi
                if _is_reachable(grasp) and _is_reachable(final):
                    best = min(best, (abs(grasp - s.eef_yaw) + abs(final - grasp) + cost, grasp))
    return best[1]


def _placement_yaw(s: SceneState) -> float:
    """Yaw of the end effector that places the grasped nut on the peg."""
    nut, best = yaw_of(s.object_rotation), (np.inf, s.eef_yaw)
    for direction, cost in HANDLE_DIRECTIONS:
        for turns in (-1, 0, 1):
            rotation = wrap_angle(direction - nut) + turns * 2 * np.pi
            if _is_reachable(s.eef_yaw + rotation):
                best = min(best, (abs(rotation) + cost, s.eef_yaw + rotation))
    return best[1]


def _is_reachable(yaw: float) -> bool:
    return YAW_RANGE[0] <= yaw <= YAW_RANGE[1]


SCRIPTED_POLICIES: dict[str, Callable[[SceneState], MotionTarget]] = {
    "Lift": _lift_policy, "PickPlaceCan": _can_policy, "NutAssemblySquare": _square_policy,
}  # fmt: skip
"""By environment with one arm; for any arm that reaches the objects."""

TWO_ARM_LIFT = "TwoArmLift"


# -- actions --------------------------------------------------------------------------------------


def has_scripted_policy(task: Task) -> bool:
    """Whether there is a scripted policy for the environment of `task`."""
    return task.simulator is not None and task.simulator.env_name in {*SCRIPTED_POLICIES, TWO_ARM_LIFT}


def check_scripted_policy(task: Task) -> None:
    """ConfigError unless there is a scripted policy for `task`."""
    if not has_scripted_policy(task):
        names = [name for name, built_in in TASKS.items() if has_scripted_policy(built_in)]
        raise ConfigError(
            f"there is no scripted policy for '{task.name}', only for {', '.join(names)}.",
            "Record demos with robosuite's or robomimic's tools, then `ddp convert DEMOS.hdf5 --task FILE.json`.",
        )
    robots = ["Panda"] if task.robosuite.env_name == TWO_ARM_LIFT else list(GRIPPERS)
    hint = "Record demos with robosuite's or robomimic's tools, then `ddp convert DEMOS.hdf5`."
    for robot in task.robosuite.robots:
        if robot not in robots:
            raise ConfigError(f"there is no scripted policy for the robot {robot}, only for {', '.join(robots)}.", hint)
    if task.robosuite.controllers or task.robosuite.env_kwargs:
        raise ConfigError(f"'{task.name}' has other controllers or arguments than scripted policies act with.", hint)


def motion_targets(sim: Simulator) -> list[tuple[SceneState, MotionTarget]]:
    """The current scene of each arm, and where its policy moves it."""
    env_name = sim.task.robosuite.env_name
    if env_name == TWO_ARM_LIFT:
        scenes = observe_two_arm_scene(sim)
        return list(zip(scenes, two_arm_lift_policy(scenes), strict=True))
    scene = observe_scene(sim)
    return [(scene, SCRIPTED_POLICIES[env_name](scene))]


def scripted_actions(sim: Simulator, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Endless pairs of intended and executed delta actions, starting at the current state of `sim`: (7,) for each arm,
    which is disturbed independently of the other.
    """
    disturbances = [Disturbances(rng) for _ in motion_targets(sim)]
    while True:
        targets = motion_targets(sim)
        intended = [target_to_action(scene, target) for scene, target in targets]
        executed = [
            disturbance.apply(action, target.near_contact)
            for disturbance, action, (_, target) in zip(disturbances, intended, targets, strict=True)
        ]
        yield np.concatenate(intended), np.concatenate(executed)


def scripted_action(sim: Simulator) -> Array:
    """The intended delta action of the scripted policy in the current state of `sim`, (7,) for each arm."""
    return np.concatenate([target_to_action(scene, target) for scene, target in motion_targets(sim)])
