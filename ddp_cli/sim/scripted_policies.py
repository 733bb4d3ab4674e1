"""Scripted demonstrators for lift, can and square.

A demonstrator here is a function of what can be seen: from where the hand, the fingers and the object are it
follows what to do next, with no plan, clock or mood of its own. Heights and speeds follow smoothly from
distances (the hand comes down as it gets above the object), so that there is little to guess for who imitates it.

What makes demonstrations differ, and show how to come back from errors, are disturbances: correlated noise
and, now and then, a push. They are added to the actions that are executed; recorded beside these is what
the demonstrator intended (Laskey et al. 2017, "DART: noise injection for robust imitation learning").

Angles [rad], lengths [m], world frame. The yaw of the hand is 0 when its fingers open along world y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ddp_cli.errors import ConfigError
from ddp_cli.rotation import Array, matrix_to_rotvec, rotvec_to_matrix
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import DELTA_METRES, DELTA_RADIANS, Task

VERSION = 3  # of what they do: an interrupted recording is continued by the same only
OPEN, CLOSED = -1.0, 1.0
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # hand pointing at the table, yaw 0
BASE_X = -0.56  # the arm's vertical axis stands at (BASE_X, 0)
YAW_RANGE = (-1.85, 3.35)  # what joint 7 allows a downward hand
UP = np.array([0.0, 0.0, 1.0])
WIDE = 0.076  # gap between open fingers, a little less


@dataclass(frozen=True)
class Scene:
    """What a demonstrator looks at; positions (3,), rotations (3, 3)."""

    hand: Array
    rotation: Array
    yaw: float
    gap: float
    """Between the fingers [m]."""
    opening: float
    """How fast it grows [m/s]."""
    object: Array
    object_rotation: Array
    target: Array

    def holds(self, point: Array, within: float = 0.035) -> bool:
        """Whether the fingers rest on something, and `point` of the object is between them."""
        resting = 0.004 < self.gap < 0.072 and abs(self.opening) < 0.03
        return resting and bool(np.linalg.norm(point - self.hand) < within)


@dataclass(frozen=True)
class Aim:
    """What to do: `move` the hand [m], turn it to `yaw` (unwrapped), fingers OPEN or CLOSED."""

    move: Array
    yaw: float
    grip: float
    delicate: bool = False
    """Close to contact: disturbances are small."""
    speed: float = 1.0
    """Limit, of the controller's fastest."""


def scene(sim: Simulator) -> Scene:
    """The present state of a built-in task."""
    hand, rotation = sim.hand()
    middle = sum(YAW_RANGE) / 2
    yaw = middle + _wrap(float(np.arctan2(-rotation[0, 0], rotation[1, 0])) - middle)
    gap, opening = sim.fingers()
    return Scene(hand, rotation, yaw, gap, opening, *sim.object(), sim.target())


# -- skills ---------------------------------------------------------------------------------------


def _grasp(s: Scene, point: Array, yaw: float, tolerance: float = 0.012) -> Aim:
    """For an empty hand: above `point`, down, close."""
    off = point - s.hand
    aside, twist = float(np.linalg.norm(off[:2])), abs(yaw - s.yaw)
    closing = 0.004 < s.gap < WIDE and s.opening < 0.03
    if closing and np.linalg.norm(off) < 0.03:
        return Aim(off, yaw, CLOSED, delicate=True)
    height = float(np.clip(3.0 * (aside - 0.006) + 0.3 * (twist - 0.08), 0.0, 0.09))
    move = off + UP * height
    if -off[2] < height - 0.04:  # too low for so far aside: up before sideways
        move[:2] *= 0.3
    there = np.linalg.norm(off) < tolerance and twist < 0.12 and s.gap > 0.06  # closed on nothing: open again
    return Aim(move, yaw, CLOSED if there else OPEN, delicate=-off[2] < 0.05 and aside < 0.04)


def _let_go(s: Scene, top: float) -> Aim:
    """Opens, and rises to `top` as the fingers come free."""
    free = _ramp(s.gap, 0.06, 0.075)
    return Aim(UP * free * np.clip(top - s.hand[2], 0.0, 0.1), s.yaw, OPEN, delicate=free < 1.0)


# -- tasks ----------------------------------------------------------------------------------------


def _lift(s: Scene) -> Aim:
    if s.holds(s.object):
        return Aim(UP * np.clip(0.95 - s.object[2], -0.05, 0.1), s.yaw, CLOSED)
    return _grasp(s, s.object, s.yaw + _wrap(_yaw(s.object_rotation) - s.yaw, np.pi / 2))


def _can(s: Scene) -> Aim:
    off = s.target[:2] - [0.04, 0.055] - s.object[:2]  # the compartment's exact centre is out of reach
    inside = bool(np.all(np.abs(off) < 0.06))
    if inside and s.object[2] < 0.915:
        return _let_go(s, 1.1)
    point = s.object + 0.015 * UP
    if not s.holds(point, 0.045):
        return _grasp(s, point, 0.0, tolerance=0.014)
    low = np.linalg.norm(off) < 0.02 or (inside and s.object[2] < 0.96)
    travel = off * (1.0 if low else _ramp(s.object[2], 0.92, 0.98))
    return Aim(np.array([*travel, (0.90 if low else 1.0) - s.object[2]]), 0.0, CLOSED)


def _square(s: Scene) -> Aim:
    nut, off = s.object, s.target[:2] - s.object[:2]
    aside = float(np.linalg.norm(off))
    if nut[2] < 0.92 and aside < 0.02:
        return _let_go(s, 1.05)
    handle = nut + s.object_rotation[:, 0] * 0.06
    if not s.holds(handle):
        return _grasp(s, handle, _grasp_yaw(s))
    final = _final_yaw(s)
    twist = abs(final - s.yaw)
    on = nut[2] < 0.955 and aside < 0.015  # lower than the peg's top, and around it
    aligned = on or (aside < 0.006 and twist < 0.07)
    height = 0.895 if aligned else 0.975 + 0.03 * max(_ramp(aside, 0.01, 0.06), _ramp(twist, 0.1, 0.5))
    clear = 0.965 if aside < 0.12 else 0.94
    travel = off * (1.0 if on else _ramp(nut[2], clear - 0.03, clear))
    return Aim(
        np.array([*travel, height - nut[2]]), final if nut[2] > 0.9 else s.yaw, CLOSED,
        delicate=aside < 0.05, speed=0.6 if aligned else 1.0,
    )  # fmt: skip


SIDES = ((np.pi, 0.0), (-np.pi / 2, 0.9), (np.pi / 2, 1.5))
"""Where the nut's handle may point on the peg, and how unwelcome that is: -x; -y and +y are harder to reach."""


def _grasp_yaw(s: Scene) -> float:
    """Of the hand on the nut's handle, with the least turning now and at the peg."""
    nut, best = _yaw(s.object_rotation), (np.inf, s.yaw)
    for half_turns in range(-3, 4):
        grasp = nut + half_turns * np.pi
        for side, penalty in SIDES:
            for turns in range(-2, 3):
                final = side + half_turns * np.pi + turns * 2 * np.pi
                if _reachable(grasp) and _reachable(final):
                    best = min(best, (abs(grasp - s.yaw) + abs(final - grasp) + penalty, grasp))
    return best[1]


def _final_yaw(s: Scene) -> float:
    """Of the hand that holds the nut, on the peg."""
    nut, best = _yaw(s.object_rotation), (np.inf, s.yaw)
    for side, penalty in SIDES:
        for turns in (-1, 0, 1):
            turn = _wrap(side - nut) + turns * 2 * np.pi
            if _reachable(s.yaw + turn):
                best = min(best, (abs(turn) + penalty, s.yaw + turn))
    return best[1]


def _reachable(yaw: float) -> bool:
    return YAW_RANGE[0] <= yaw <= YAW_RANGE[1]


SCRIPTS: dict[str, Callable[[Scene], Aim]] = {"lift": _lift, "can": _can, "square": _square}


# -- from aims to actions -------------------------------------------------------------------------


def check_scripted_policy(task: Task) -> None:
    """ConfigError unless there is a script for `task`."""
    if task.name not in SCRIPTS:
        raise ConfigError(
            f"there is no scripted demonstrator for '{task.name}', only for {', '.join(SCRIPTS)}.",
            "Record demos with robosuite's or robomimic's tools, then `ddp convert DEMOS.hdf5 --task FILE.json`.",
        )


def scripted_actions(sim: Simulator, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Endless pairs of actions (7,), as intended and as executed, from the present state of `sim` on."""
    disturbances = Disturbances(rng)
    script = SCRIPTS[sim.task.name]
    while True:
        seen = scene(sim)
        aim = script(seen)
        intended = command(seen, aim)
        yield intended, disturbances.add(intended, aim.delicate)


def command(s: Scene, aim: Aim) -> Array:
    """The action (7,) towards `aim`: proportional control with limited speeds."""
    yaw = s.yaw + float(np.clip(aim.yaw - s.yaw, -1.0, 1.0))
    # Far out a vertical hand is out of reach: lean the fingers outward.
    radius = np.array([s.hand[0] - BASE_X, s.hand[1], 0.0])
    distance = float(np.linalg.norm(radius))
    lean = -0.3 * _ramp(distance, 0.66, 0.80) * np.cross(UP, radius / distance)
    orientation = rotvec_to_matrix(lean) @ rotvec_to_matrix(yaw * UP) @ DOWN
    # A stretched arm that is to draw back and to lean at once does neither: first back, and firmly.
    inward = -float(aim.move @ radius) / distance
    stretched = _ramp(distance, 0.77, 0.79) if inward > 0.0 else 0.0
    move = _cap(1.5 * (aim.move - 2.0 * stretched * inward * radius / distance) / DELTA_METRES, aim.speed)
    back = stretched * _ramp(inward, 0.002, 0.005)
    turn = _cap(1.2 * matrix_to_rotvec(orientation @ s.rotation.T) / DELTA_RADIANS, 0.4 * (1.0 - back))
    return np.concatenate([move, turn, [aim.grip]])


class Disturbances:
    """Noise that is correlated over about five steps, pushes of three to eight, and slips: fingers that close
    before they should, or let go.
    """

    NOISE, DELICATE = 0.1, 0.4  # standard deviation, and how much of it is left close to contact
    PUSHES, SLIPS = 0.015, 0.008  # a step

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._noise, self._push, self._left = np.zeros(6), np.zeros(6), 0
        self._slipping = 0

    def add(self, action: Array, delicate: bool) -> Array:
        """`action` (7,), disturbed."""
        rng = self.rng
        kicks = self.NOISE * rng.normal(size=6) * [1, 1, 1, 0.35, 0.35, 0.35]
        self._noise = 0.8 * self._noise + 0.6 * kicks
        if not self._left and rng.random() < self.PUSHES:
            self._left = int(rng.integers(3, 9))
            self._push = np.concatenate(
                [_direction(rng) * rng.uniform(0.2, 1.0), _direction(rng) * rng.uniform(0, 0.5)]
            )
        extra = self._noise + (self._push if self._left else 0.0)
        self._left = max(0, self._left - 1)
        if not self._slipping and rng.random() < self.SLIPS:
            self._slipping = int(rng.integers(4, 9))
        grip = -action[6] if self._slipping else action[6]
        self._slipping = max(0, self._slipping - 1)
        disturbed = action[:6] + extra * (self.DELICATE if delicate else 1.0)
        return np.append(np.clip(disturbed, -1.0, 1.0), grip)


def _direction(rng: np.random.Generator) -> Array:
    v = rng.normal(size=3)
    return np.asarray(v / np.linalg.norm(v))


def _yaw(rotation: Array) -> float:
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _wrap(angle: float, period: float = 2 * np.pi) -> float:
    return float((angle + period / 2) % period - period / 2)


def _ramp(x: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`."""
    return float(np.clip((x - low) / (high - low), 0.0, 1.0))


def _cap(v: Array, limit: float) -> Array:
    norm = float(np.linalg.norm(v))
    return v if norm <= limit else v * (limit / norm)
