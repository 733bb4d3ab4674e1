"""Scripted policies that collect demonstrations for lift, can and square.

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
from dataclasses import dataclass

import numpy as np

from ddp_cli.errors import ConfigError
from ddp_cli.rotation import Array, matrix_to_rotvec, rotvec_to_matrix
from ddp_cli.sim.grippers import GRIPPERS, GripperOpenings
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import DELTA_METRES, DELTA_RADIANS, TASKS, Task

SCRIPT_VERSION = 3  # a recording can be resumed by the same version only
OPEN, CLOSED = -1.0, 1.0
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # gripper pointing down, yaw 0
BASE_X = -0.56  # the arm's vertical axis is at (BASE_X, 0)
YAW_RANGE = (-1.85, 3.35)  # limits of joint 7 for a gripper that points down
Z_AXIS = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class SceneState:
    """What a scripted policy observes; positions (3,), rotations (3, 3)."""

    eef_pos: Array
    eef_rotation: Array
    eef_yaw: float
    gripper_opening: float
    """Distance between the fingers [m]."""
    gripper_velocity: float
    """Rate of change of `gripper_opening` [m/s]."""
    object_pos: Array
    object_rotation: Array
    target_pos: Array
    fingers: GripperOpenings = GRIPPERS["Panda"]

    def is_grasped(self, point: Array, tolerance: float = 0.035) -> bool:
        """Whether the fingers are closed around something at rest, and `point` is within `tolerance` of the grip."""
        is_holding = (
            self.fingers.closed < self.gripper_opening < self.fingers.held and abs(self.gripper_velocity) < 0.03
        )
        return is_holding and bool(np.linalg.norm(point - self.eef_pos) < tolerance)


@dataclass(frozen=True)
class MotionTarget:
    """Where to move: `translation` of the end effector [m], its `yaw` (unwrapped), gripper OPEN or CLOSED."""

    translation: Array
    yaw: float
    gripper: float
    near_contact: bool = False
    """Disturbances are reduced."""
    max_speed: float = 1.0
    """Limit of the translation action, as a fraction of the controller's maximum."""


def observe_scene(sim: Simulator) -> SceneState:
    """The current scene of a built-in task."""
    position, rotation = sim.eef_pose()
    middle = sum(YAW_RANGE) / 2
    yaw = middle + _wrap_angle(float(np.arctan2(-rotation[0, 0], rotation[1, 0])) - middle)
    opening, velocity = sim.gripper_opening()
    fingers = GRIPPERS[sim.task.robosuite.robot]
    return SceneState(position, rotation, yaw, opening, velocity, *sim.object_pose(), sim.target_position(), fingers)


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
    clearance = _ramp(s.gripper_opening, s.fingers.ready, s.fingers.wide - 0.001)
    translation = Z_AXIS * clearance * np.clip(height - s.eef_pos[2], 0.0, 0.1)
    return MotionTarget(translation, s.eef_yaw, OPEN, near_contact=clearance < 1.0)


# -- policies of the tasks ------------------------------------------------------------------------


def _lift_policy(s: SceneState) -> MotionTarget:
    if s.is_grasped(s.object_pos):
        return MotionTarget(Z_AXIS * np.clip(0.95 - s.object_pos[2], -0.05, 0.1), s.eef_yaw, CLOSED)
    yaw = s.eef_yaw + _wrap_angle(_yaw_of(s.object_rotation) - s.eef_yaw, np.pi / 2)
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
    lateral = offset * (1.0 if descend else _ramp(s.object_pos[2], 0.92, 0.98))
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
    height = 0.895 if is_aligned else 0.975 + 0.03 * max(_ramp(distance, 0.01, 0.06), _ramp(yaw_error, 0.1, 0.5))
    transport_height = 0.965 if distance < 0.12 else 0.94
    lateral = offset * (1.0 if on_peg else _ramp(nut[2], transport_height - 0.03, transport_height))
    return MotionTarget(
        np.array([*lateral, height - nut[2]]), final_yaw if nut[2] > 0.9 else s.eef_yaw, CLOSED,
        near_contact=distance < 0.05, max_speed=0.6 if is_aligned else 1.0,
    )  # fmt: skip


HANDLE_DIRECTIONS = ((np.pi, 0.0), (-np.pi / 2, 0.9), (np.pi / 2, 1.5))
"""Yaw of the nut's handle on the peg, and the cost of it: -x is free; -y and +y are harder to reach."""


def _grasp_yaw(s: SceneState) -> float:
    """Yaw of the end effector on the nut's handle, with the least rotation now and at the peg."""
    nut, best = _yaw_of(s.object_rotation), (np.inf, s.eef_yaw)
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
    nut, best = _yaw_of(s.object_rotation), (np.inf, s.eef_yaw)
    for direction, cost in HANDLE_DIRECTIONS:
        for turns in (-1, 0, 1):
            rotation = _wrap_angle(direction - nut) + turns * 2 * np.pi
            if _is_reachable(s.eef_yaw + rotation):
                best = min(best, (abs(rotation) + cost, s.eef_yaw + rotation))
    return best[1]


def _is_reachable(yaw: float) -> bool:
    return YAW_RANGE[0] <= yaw <= YAW_RANGE[1]


SCRIPTED_POLICIES: dict[str, Callable[[SceneState], MotionTarget]] = {
    "Lift": _lift_policy, "PickPlaceCan": _can_policy, "NutAssemblySquare": _square_policy,
}  # fmt: skip
"""By environment; for any arm that reaches the objects."""


# -- from motion targets to actions ---------------------------------------------------------------


def has_scripted_policy(task: Task) -> bool:
    """Whether there is a scripted policy for the environment of `task`."""
    return task.simulator is not None and task.simulator.env_name in SCRIPTED_POLICIES


def check_scripted_policy(task: Task) -> None:
    """ConfigError unless there is a scripted policy for `task`."""
    if not has_scripted_policy(task):
        raise ConfigError(
            f"there is no scripted policy for '{task.name}', only for {', '.join(TASKS)}.",
            "Record demos with robosuite's or robomimic's tools, then `ddp convert DEMOS.hdf5 --task FILE.json`.",
        )
    if task.robosuite.robot not in GRIPPERS:
        raise ConfigError(
            f"there is no scripted policy for the robot {task.robosuite.robot}, only for {', '.join(GRIPPERS)}.",
            "Record demos with robosuite's or robomimic's tools, then `ddp convert DEMOS.hdf5`.",
        )


def scripted_actions(sim: Simulator, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Endless pairs of intended and executed delta actions (7,), starting at the current state of `sim`."""
    disturbances = Disturbances(rng)
    policy = SCRIPTED_POLICIES[sim.task.robosuite.env_name]
    while True:
        scene = observe_scene(sim)
        target = policy(scene)
        intended = target_to_action(scene, target)
        yield intended, disturbances.apply(intended, target.near_contact)


def scripted_action(sim: Simulator) -> Array:
    """The intended delta action (7,) of the scripted policy in the current state of `sim`."""
    scene = observe_scene(sim)
    return target_to_action(scene, SCRIPTED_POLICIES[sim.task.robosuite.env_name](scene))


def target_to_action(s: SceneState, target: MotionTarget) -> Array:
    """The delta action (7,) towards `target`: proportional control with limited speed."""
    yaw = s.eef_yaw + float(np.clip(target.yaw - s.eef_yaw, -1.0, 1.0))
    # Far from the base a vertical gripper is out of reach: tilt the fingers outward.
    radius = np.array([s.eef_pos[0] - BASE_X, s.eef_pos[1], 0.0])
    distance = float(np.linalg.norm(radius))
    tilt = -0.3 * _ramp(distance, 0.66, 0.80) * np.cross(Z_AXIS, radius / distance)
    orientation = rotvec_to_matrix(tilt) @ rotvec_to_matrix(yaw * Z_AXIS) @ DOWN
    # A stretched arm that has to retract and tilt at once does neither: retract first, with a larger gain.
    inward = -float(target.translation @ radius) / distance
    stretched = _ramp(distance, 0.77, 0.79) if inward > 0.0 else 0.0
    translation = _clip_norm(
        1.5 * (target.translation - 2.0 * stretched * inward * radius / distance) / DELTA_METRES, target.max_speed
    )
    retracting = stretched * _ramp(inward, 0.002, 0.005)
    rotation = _clip_norm(
        1.2 * matrix_to_rotvec(orientation @ s.eef_rotation.T) / DELTA_RADIANS, 0.4 * (1.0 - retracting)
    )
    return np.concatenate([translation, rotation, [target.gripper]])


class Disturbances:
    """Noise correlated over about five steps, pushes of three to eight steps, and gripper slips: the gripper command
    is inverted for four to eight steps.
    """

    NOISE_STD, NEAR_CONTACT_SCALE = 0.1, 0.4
    PUSH_PROBABILITY, SLIP_PROBABILITY = 0.015, 0.008  # per step

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._noise, self._push, self._push_steps = np.zeros(6), np.zeros(6), 0
        self._slip_steps = 0

    def apply(self, action: Array, near_contact: bool) -> Array:
        """`action` (7,) with the disturbance of the next step added."""
        rng = self.rng
        white_noise = self.NOISE_STD * rng.normal(size=6) * [1, 1, 1, 0.35, 0.35, 0.35]
        self._noise = 0.8 * self._noise + 0.6 * white_noise
        if not self._push_steps and rng.random() < self.PUSH_PROBABILITY:
            self._push_steps = int(rng.integers(3, 9))
            self._push = np.concatenate(
                [_random_direction(rng) * rng.uniform(0.2, 1.0), _random_direction(rng) * rng.uniform(0, 0.5)]
            )
        disturbance = self._noise + (self._push if self._push_steps else 0.0)
        self._push_steps = max(0, self._push_steps - 1)
        if not self._slip_steps and rng.random() < self.SLIP_PROBABILITY:
            self._slip_steps = int(rng.integers(4, 9))
        gripper = -action[6] if self._slip_steps else action[6]
        self._slip_steps = max(0, self._slip_steps - 1)
        disturbed = action[:6] + disturbance * (self.NEAR_CONTACT_SCALE if near_contact else 1.0)
        return np.append(np.clip(disturbed, -1.0, 1.0), gripper)


def _random_direction(rng: np.random.Generator) -> Array:
    v = rng.normal(size=3)
    return np.asarray(v / np.linalg.norm(v))


def _yaw_of(rotation: Array) -> float:
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _wrap_angle(angle: float, period: float = 2 * np.pi) -> float:
    return float((angle + period / 2) % period - period / 2)


def _ramp(x: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, linear in between."""
    return float(np.clip((x - low) / (high - low), 0.0, 1.0))


def _clip_norm(v: Array, limit: float) -> Array:
    norm = float(np.linalg.norm(v))
    return v if norm <= limit else v * (limit / norm)
