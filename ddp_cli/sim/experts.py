"""Scripted demonstrators for lift, can and square.

Each is a generator that looks at the simulator and yields actions, written as the sequence a person
would describe: go above, go down, close, lift, carry, let go. Way-points, speeds and heights are drawn
per episode and correlated noise is added to every action, so that demonstrations differ as people's do
and show how to come back from small errors.

Angles [rad], lengths [m], world frame. The yaw of the hand is 0 when its fingers open along world y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ddp_cli.errors import ConfigError
from ddp_cli.rotation import Array, matrix_to_rotvec, rotvec_to_matrix
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task

OPEN, CLOSED = -1.0, 1.0
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # hand pointing at the table, yaw 0
BASE_X = -0.56  # the arm's vertical axis stands at (BASE_X, 0)
YAW_RANGE = (-1.85, 3.35)  # what joint 7 allows a downward hand
UP = np.array([0.0, 0.0, 1.0])

Actions = Iterator[Array]


class Arm:
    """Proportional control of the hand with speed limits, slew limits and correlated noise."""

    def __init__(self, sim: Simulator, rng: np.random.Generator) -> None:
        self.sim, self.rng = sim, rng
        self.grip = OPEN
        self.yaw = self.measured_yaw()
        self._gain = 1.3 * rng.uniform(0.85, 1.15)
        self._fast, self._slow = rng.uniform(0.65, 1.0), rng.uniform(0.3, 0.5)
        self._turn, self._slew = rng.uniform(0.25, 0.5), rng.uniform(0.12, 0.25)
        self._tilt = rng.normal(0.0, 0.04, 2)
        self._noise, self._last = np.zeros(6), np.zeros(6)

    def measured_yaw(self) -> float:
        """The hand's yaw, in (-pi, pi]."""
        x_axis = self.sim.hand()[1][:, 0]
        return float(np.arctan2(-x_axis[0], x_axis[1]))

    def position(self) -> Array:
        """Where the hand is (3,)."""
        return self.sim.hand()[0]

    def command(self, position: Array, yaw: float, near: bool, extra: Array | None = None) -> Array:
        """The action (7,) that moves the hand towards `position` and `yaw` (unwrapped)."""
        here, rotation = self.sim.hand()
        self.yaw += _wrap(self.measured_yaw() - self.yaw)
        aim = self.yaw + np.clip(yaw - self.yaw, -1.0, 1.0)
        error = position - here + (0.0 if extra is None else extra)
        move = _cap(self._gain * error / 0.05, self._slow if near else self._fast)
        turn = _cap(1.2 * matrix_to_rotvec(self._orientation(position, aim) @ rotation.T) / 0.5, self._turn)

        sigma = 0.025 if near else 0.06
        self._noise = 0.8 * self._noise + 0.6 * sigma * self.rng.normal(size=6) * [1, 1, 1, 0.35, 0.35, 0.35]
        slew = np.array([self._slew] * 3 + [0.12] * 3)
        self._last = self._last + np.clip(np.concatenate([move, turn]) - self._last, -slew, slew)
        return np.append(np.clip(self._last + self._noise, -1.0, 1.0), self.grip)

    def _orientation(self, position: Array, yaw: float) -> Array:
        # Far out a vertical hand is out of reach: lean the fingers outward.
        radius = np.array([position[0] - BASE_X, position[1], 0.0])
        distance = float(np.linalg.norm(radius))
        lean = 0.3 * np.clip((distance - 0.76) / 0.05, 0.0, 1.0)
        outward = -lean * np.cross(UP, radius / distance) + np.array([*self._tilt, 0.0])
        return rotvec_to_matrix(outward) @ rotvec_to_matrix(yaw * UP) @ DOWN

    def go(
        self,
        position: Array,
        yaw: float,
        near: bool = False,
        tolerance: float = 0.012,
        turn_tolerance: float = 0.12,
        steps: int = 80,
    ) -> Actions:
        """Until the hand is within the tolerances of a fixed pose, `steps` at most."""
        for _ in range(steps):
            yield self.command(position, yaw, near)
            off = abs(_wrap(yaw - self.measured_yaw()))
            if np.linalg.norm(position - self.position()) < tolerance and off < turn_tolerance:
                return

    def hold(self, steps: int, yaw: float) -> Actions:
        """Stays where it is, opening or closing the fingers."""
        position = self.position()
        for _ in range(steps):
            yield self.command(position, yaw, near=True)

    def servo(
        self,
        error: Callable[[], tuple[Array, float]],
        near: bool,
        tolerance: float,
        turn_tolerance: float,
        steps: int,
        lost: Callable[[], bool],
    ) -> Actions:
        """Moves what is in the hand: `error()` is how far it is off, (3,) and yaw.

        An integral term overcomes the stall of pure proportional control at the edge of the reach.
        """
        integral = np.zeros(3)
        for _ in range(steps):
            offset, turn = error()
            if np.linalg.norm(offset) < 0.025:  # no wind-up on the way there
                integral = np.clip(integral + 0.06 * offset, -0.02, 0.02)
            yield self.command(self.position() + offset, self.yaw + turn, near, extra=integral)
            offset, turn = error()
            if lost() or (np.linalg.norm(offset) < tolerance and abs(turn) < turn_tolerance):
                return


def check_demonstrator(task: Task) -> None:
    """ConfigError unless there is a script for `task`."""
    if task.name not in SCRIPTS:
        raise ConfigError(
            f"there is no scripted demonstrator for '{task.name}', only for {', '.join(SCRIPTS)}.",
            "Record demos with robosuite's or robomimic's tools, then `ddp convert DEMOS.hdf5 --task FILE.json`.",
        )


def demonstrator(sim: Simulator, rng: np.random.Generator) -> Actions:
    """Endless actions (7,) for the task of `sim`, from its present state."""
    arm = Arm(sim, rng)
    yield from SCRIPTS[sim.task.name](arm)
    while True:
        yield from arm.hold(10, arm.yaw)


def _lift(arm: Arm) -> Actions:
    rng, u = arm.rng, arm.rng.uniform
    cube, rotation = arm.sim.object()
    corner = np.arctan2(rotation[1, 0], rotation[0, 0])
    yaw = arm.yaw + _wrap_to(corner - arm.yaw, np.pi / 2)
    yield from arm.go(cube + UP * u(0.05, 0.09), yaw)
    grasp = cube + UP * u(-0.005, 0.008)
    yield from arm.go(grasp, yaw, near=True, tolerance=0.008)
    arm.grip = CLOSED
    yield from arm.hold(int(rng.integers(8, 13)), yaw)
    yield from arm.go(grasp + UP * u(0.08, 0.14), yaw)


def _can(arm: Arm) -> Actions:
    rng, u = arm.rng, arm.rng.uniform
    for _ in range(3):
        can, _rotation = arm.sim.object()
        yaw = u(-0.3, 0.3)
        arm.grip = OPEN
        yield from arm.go(can + UP * u(0.07, 0.12), yaw)
        yield from arm.go(can + UP * u(0.006, 0.024), yaw, near=True, tolerance=0.008)
        arm.grip = CLOSED
        yield from arm.hold(int(rng.integers(9, 14)), yaw)
        height = u(0.985, 1.03)
        yield from arm.go(np.array([*arm.position()[:2], height + 0.01]), yaw)
        slot = arm.sim.target()
        # The slot's exact centre is out of reach.
        goal = np.array([*(slot[:2] - [0.04, 0.055] + u(-0.018, 0.018, 2)), height])
        yield from arm.servo(
            lambda goal=goal: (goal - arm.sim.object()[0], 0.0),  # type: ignore[misc]
            near=False, tolerance=0.03, turn_tolerance=9.0, steps=90, lost=lambda: _apart(arm, 0.06),
        )  # fmt: skip
        if _apart(arm, 0.06):
            yield from arm.go(arm.position() + UP * 0.1, yaw)
            continue
        release = np.array([*arm.position()[:2], u(0.88, 0.95)])
        yield from arm.go(release, yaw, near=True)
        arm.grip = OPEN
        yield from arm.hold(int(rng.integers(3, 7)), yaw)
        yield from arm.go(arm.position() + UP * u(0.06, 0.12), yaw)
        return


def _square(arm: Arm) -> Actions:
    rng, u, sim = arm.rng, arm.rng.uniform, arm.sim
    nut = sim.object()[0]
    via = np.array([*(0.5 * (nut[:2] + arm.position()[:2]) + u(-0.03, 0.03, 2)), u(0.95, 1.03)])
    yield from arm.go(via, arm.yaw, tolerance=0.05, turn_tolerance=9.0)
    for _ in range(3):
        grasp_yaw, final_yaw = _plan_square(arm)
        nut_from_hand = _yaw(sim.object()[1]) - grasp_yaw
        arm.grip = OPEN
        along = u(-0.002, 0.015)
        handle = _handle(sim, along)
        yield from arm.go(handle + UP * u(0.06, 0.11), grasp_yaw)
        yield from arm.go(_handle(sim, along), grasp_yaw, near=True, tolerance=0.007)
        arm.grip = CLOSED
        yield from arm.hold(int(rng.integers(9, 15)), grasp_yaw)
        yield from arm.go(np.array([*arm.position()[:2], u(0.985, 1.05)]), grasp_yaw, tolerance=0.02)

        peg = sim.target()[:2]

        def off(
            height: float, peg: Array = peg, final: float = final_yaw, planned: float = nut_from_hand
        ) -> tuple[Array, float]:
            position, rotation = sim.object()
            slipped = _wrap(_yaw(rotation) - arm.measured_yaw() - planned)
            return np.array([*peg, height]) - position, final - arm.yaw - slipped

        def lost() -> bool:
            return bool(np.linalg.norm(_handle(sim, 0.0) - arm.position()) > 0.04)

        carry, low = 0.95 + u(0.05, 0.085), u(0.895, 0.935)
        for _attempt in range(3):
            yield from arm.servo(lambda: off(carry), False, 0.02, 0.2, 120, lost)  # noqa: B023
            yield from arm.servo(lambda: off(0.972), True, 0.005, 0.07, 60, lost)
            yield from arm.servo(lambda: off(low), True, 0.012, 9.0, 40, lost)  # noqa: B023
            if lost() or sim.object()[0][2] < 0.945:  # below the peg's top: it is on
                break
        if lost():
            yield from arm.go(arm.position() + UP * 0.08, arm.yaw)
            continue
        arm.grip = OPEN
        yield from arm.hold(int(rng.integers(3, 7)), arm.yaw)
        yield from arm.go(arm.position() + UP * u(0.05, 0.10), arm.yaw)
        return


def _plan_square(arm: Arm) -> tuple[float, float]:
    """Yaw of the hand (unwrapped) at the grasp and at the peg: the way with the least turning.

    The handle may end towards -x, or, less well within reach, -y or +y of the peg.
    """
    nut_yaw = _yaw(arm.sim.object()[1])
    best = (np.inf, 0.0, 0.0)
    for j in range(-3, 4):
        grasp = nut_yaw + j * np.pi
        for side, penalty in ((np.pi, 0.0), (-np.pi / 2, 0.9), (np.pi / 2, 1.5)):
            for k in range(-2, 3):
                final = side + 2 * np.pi * k  # of the nut; the hand ends j * pi away
                hand = final + j * np.pi
                inside = all(YAW_RANGE[0] <= y <= YAW_RANGE[1] for y in (grasp, hand))
                cost = abs(grasp - arm.yaw) + abs(hand - grasp) + penalty
                if inside and cost < best[0]:
                    best = (cost, grasp, hand)
    return best[1], best[2]


def _handle(sim: Simulator, along: float) -> Array:
    position, rotation = sim.object()
    return np.asarray(position + rotation[:, 0] * (0.054 + along))


def _apart(arm: Arm, distance: float) -> bool:
    return bool(np.linalg.norm(arm.sim.object()[0] - arm.position()) > distance)


def _yaw(rotation: Array) -> float:
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _wrap(angle: float) -> float:
    return _wrap_to(angle, 2 * np.pi)


def _wrap_to(angle: float, period: float) -> float:
    return float((angle + period / 2) % period - period / 2)


def _cap(v: Array, limit: float) -> Array:
    norm = float(np.linalg.norm(v))
    return v if norm <= limit else v * (limit / norm)


SCRIPTS: dict[str, Callable[[Arm], Actions]] = {"lift": _lift, "can": _can, "square": _square}
