"""Actions are clamped to their limits, the same in episodes and on a robot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest

from ddp_cli.action_limits import ActionError, ActionLimits
from ddp_cli.evaluation.rollout import run_episode
from ddp_cli.robots import ABSOLUTE_PARTS, delta_parts
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d, rotvec_to_matrix
from ddp_cli.schema import ActionPart
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task

ROTATION = matrix_to_6d(rotvec_to_matrix(np.array([0.3, -1.2, 0.5])))
PREVIOUS = np.array([0.1, 0.2, 0.9, *ROTATION, 1.0])


def absolute_limits(low: Sequence[float], high: Sequence[float]) -> ActionLimits:
    """Limits of absolute actions whose positions [m] lie in a box, without a margin."""
    parts = ABSOLUTE_PARTS
    position = parts[0].model_copy(update={"low": tuple(low), "high": tuple(high)})
    return ActionLimits.from_parts((position, *parts[1:]))


DELTA, ANYWHERE = (ActionLimits.from_parts(get_task("lift").action_parts(name)) for name in ("delta", "absolute"))
ABSOLUTE = absolute_limits((-0.3, -0.3, 0.8), (0.3, 0.3, 1.2))


def absolute_action(**parts: object) -> np.ndarray:
    """A chunk of one absolute action: `PREVIOUS`, with other `position`, `rotation` or `gripper`."""
    values = {"position": PREVIOUS[:3], "rotation": ROTATION, "gripper": 1.0, **parts}
    return np.array([[*values["position"], *values["rotation"], values["gripper"]]], np.float32)


def test_delta_actions_are_clipped() -> None:
    action = np.array([[2.0, -3.0, 0.5, -0.5, 1.5, 0.0, 7.0]], np.float32)
    clamped = DELTA.clamp(action, np.zeros(7), "seed 0")
    assert clamped.tolist() == [[1.0, -1.0, 0.5, -0.5, 1.0, 0.0, 1.0]]
    assert clamped.dtype == np.float64
    assert action[0, 0] == 2.0  # the argument is not modified


def test_absolute_positions_are_clipped_to_their_box_not_to_1() -> None:
    unlimited = ANYWHERE.clamp(absolute_action(position=[1.5, -2.0, 0.9], gripper=3.0), PREVIOUS, "")
    np.testing.assert_allclose(unlimited[0], [1.5, -2.0, 0.9, *ROTATION, 1.0], atol=1e-6)
    limited = ABSOLUTE.clamp(absolute_action(position=[1.5, -2.0, 0.9], gripper=-3.0), PREVIOUS, "")
    np.testing.assert_allclose(limited[0], [0.3, -0.3, 0.9, *ROTATION, -1.0], atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1.0, 2.5, np.pi])
def test_rotations_up_to_pi_are_unchanged(angle: float) -> None:
    rotation = matrix_to_6d(rotvec_to_matrix(angle * np.array([0.6, 0.0, 0.8])))
    np.testing.assert_allclose(
        ABSOLUTE.clamp(absolute_action(rotation=rotation), PREVIOUS, "")[0, 3:9], rotation, atol=1e-6
    )


def test_rotations_are_orthonormalized() -> None:
    rotation = 3.0 * ROTATION + np.array([0.1, -0.2, 0.1, 0.2, 0.1, -0.1])
    projected = ABSOLUTE.clamp(absolute_action(rotation=rotation), PREVIOUS, "")[0, 3:9]
    np.testing.assert_allclose(projected[:3], rotation[:3] / np.linalg.norm(rotation[:3]), atol=1e-6)
    np.testing.assert_allclose([projected[:3] @ projected[3:], projected[3:] @ projected[3:]], [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize(
    "rotation",
    [
        [0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 1, -1, 1, 1, -1],
        [1, 0, 0, -1, 1e-4, 0],
        [1e-5, 0, 0, 0, 1, 0],
        [0] * 6,
    ],
)
def test_degenerate_rotation_is_replaced_by_the_previous_one(rotation: list[float]) -> None:
    other = matrix_to_6d(rotvec_to_matrix(np.array([0.0, 0.7, 0.0])))
    chunk = np.concatenate(
        [
            absolute_action(rotation=rotation),
            absolute_action(rotation=other),
            absolute_action(rotation=rotation, position=[0, 0, 1]),
        ]
    )
    projected = ABSOLUTE.clamp(chunk, PREVIOUS, "")
    np.testing.assert_allclose(projected[:, 3:9], [ROTATION, other, other], atol=1e-6)
    assert projected[2, :3].tolist() == [0, 0, 1]
    for action in projected:
        assert np.linalg.det(matrix_from_6d(action[3:9])) == pytest.approx(1.0)


def test_a_degenerate_rotation_without_a_previous_one_is_an_error() -> None:
    degenerate, other = absolute_action(rotation=[1, 0, 0, 2, 0, 0]), absolute_action(rotation=2 * ROTATION)
    message = r"degenerate rotation \[1.0, 0.0, 0.0, 2.0, 0.0, 0.0\] \(seed 12\), and there is no previous one to hold"
    with pytest.raises(ActionError, match=message):
        ABSOLUTE.clamp(np.concatenate([degenerate, other]), None, "seed 12")
    clamped = ABSOLUTE.clamp(np.concatenate([other, degenerate]), None)
    np.testing.assert_allclose(clamped[:, 3:9], [ROTATION, ROTATION], atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("column", [0, 5, -1])
def test_actions_that_are_not_finite_raise_an_error(value: float, column: int) -> None:
    for action_limits, action in (
        (DELTA, np.zeros((2, 7))),
        (ABSOLUTE, absolute_action().astype(float)),
    ):
        action[-1, column] = value
        with pytest.raises(ActionError, match=r"not finite \(seed 12\)"):
            action_limits.clamp(action, action[0], "seed 12")


def test_actions_of_another_convention_raise_an_error() -> None:
    with pytest.raises(ActionError, match=r"shape \(8, 7\) \(seed 3\), expected \(steps, 10\).*actions of this width"):
        ABSOLUTE.clamp(np.zeros((8, 7)), PREVIOUS, "seed 3")


def test_values_without_limits_are_limited_by_the_range_of_the_training_data_plus_a_margin() -> None:
    low, high = [-0.2, -0.1, 0.9, *[-0.5] * 7], [0.1, 0.2, 1.1, *[0.5] * 7]
    limits = ActionLimits.from_parts(ABSOLUTE_PARTS, low, high)
    np.testing.assert_allclose(limits.low, [-0.25, -0.15, 0.85, *[-np.inf] * 6, -1.0])
    np.testing.assert_allclose(limits.high, [0.15, 0.25, 1.15, *[np.inf] * 6, 1.0])
    joints = ActionPart(name="joints", width=2, unit="rad")
    limits = ActionLimits.from_parts([joints], [-1.0, 2.0], [1.0, 2.0])
    np.testing.assert_allclose([limits.low, limits.high], [[-1.1, 2.0], [1.1, 2.0]])
    assert ActionLimits.from_parts(delta_parts(), [0.0] * 7, [0.1] * 7) == DELTA
    for bounds, expected in (
        ({"low": (0.0, None)}, [[0.0, -np.inf], [1.1, 2.0]]),
        ({"high": (3.0, None)}, [[-1.1, 2.0], [3.0, np.inf]]),
    ):
        limits = ActionLimits.from_parts([ActionPart(name="joints", width=2, **bounds)], [-1.0, 2.0], [1.0, 2.0])
        np.testing.assert_allclose([limits.low, limits.high], expected)


def test_quaternions_are_normalized_and_held_where_they_are_degenerate() -> None:
    pose = ActionPart(name="rotation", width=4, representation="absolute", rotation="quaternion-wxyz")
    limits = ActionLimits.from_parts([pose, ActionPart(name="fingers", width=1, gripper=True)])
    chunk = np.array([[0.0, 0.0, 3.0, 4.0, 9.0], [0.0, 0.0, 0.0, 1e-5, 7.0]])
    clamped = limits.clamp(chunk, limits.neutral_action())
    np.testing.assert_allclose(clamped, [[0.0, 0.0, 0.6, 0.8, 9.0], [0.0, 0.0, 0.6, 0.8, 7.0]])
    assert limits.count_degenerate(chunk) == 1
    with pytest.raises(ActionError, match="no previous one to hold"):
        limits.clamp(chunk[1:], None)
    assert ActionLimits.from_json(json.loads(json.dumps(limits.to_json()))) == limits


@pytest.mark.parametrize(("low", "high"), [([0.0, 0.0, 1.0], [1.0, 1.0, 0.0]), ([0.0, np.nan, 0.0], [1.0] * 3)])
def test_what_is_not_a_box_is_refused(low: list[float], high: list[float]) -> None:
    with pytest.raises(ActionError, match="are not a box"):
        absolute_limits(low, high)
    with pytest.raises(ActionError, match="a range of 4 and 4 values, expected 10"):
        ActionLimits.from_parts(ABSOLUTE_PARTS, [0.0] * 4, [1.0] * 4)


def test_limits_of_earlier_versions_are_read() -> None:
    assert ActionLimits.from_json({"low": [-1.0] * 7, "high": [1.0] * 7}) == DELTA
    low, high = [-0.3, -0.3, 0.8, *[None] * 6, -1.0], [0.3, 0.3, 1.2, *[None] * 6, 1.0]
    assert ActionLimits.from_json({"low": low, "high": high}) == ABSOLUTE


def test_limits_are_written_to_json_and_read_back() -> None:
    for limits, low in (
        (DELTA, [-1.0] * 7),
        (ABSOLUTE, [-0.3, -0.3, 0.8, *[None] * 6, -1.0]),
        (ANYWHERE, [*[None] * 9, -1.0]),
    ):
        content = json.loads(json.dumps(limits.to_json()))
        assert content["low"] == low
        assert ActionLimits.from_json(content) == limits
    with pytest.raises(ActionError, match="limits of 6 and 7 values are not those of an action"):
        ActionLimits.from_json({"low": [0.0] * 6, "high": [0.0] * 7})


@pytest.mark.parametrize(
    ("rotation", "identity"),
    [
        ("quaternion-wxyz", [1, 0, 0, 0]),
        ("quaternion-xyzw", [0, 0, 0, 1]),
        ("rotation-6d", [1, 0, 0, 0, 1, 0]),
        ("axis-angle", [0, 0, 0]),
    ],
)
def test_a_rotation_that_is_a_motion_stops_with_the_identity(rotation: str, identity: list[float]) -> None:
    parts = [
        ActionPart(name="position", width=3, representation="delta"),
        ActionPart(name="rotation", width=len(identity), representation="delta", rotation=rotation),
        ActionPart(name="gripper", width=1, representation="plain", gripper=True),
    ]
    limits = ActionLimits.from_json(json.loads(json.dumps(ActionLimits.from_parts(parts).to_json())))
    last = np.full(limits.dim, 0.3)
    assert limits.hold_action(last).tolist() == [0, 0, 0, *identity, 0.3]
    limits.validate_action(limits.initial_action(None), "start")


def test_the_order_of_a_quaternion_that_is_a_motion_has_to_be_known() -> None:
    with pytest.raises(ActionError, match="order of the values of a quaternion"):  # of an earlier version
        ActionLimits((-1.0,) * 4, (1.0,) * 4, ("motion",) * 4, quaternions=(0,))
    for real_parts in [(4,), (-1,), (0, 3)]:
        with pytest.raises(ActionError, match="real parts lie outside"):
            ActionLimits((-1.0,) * 5, (1.0,) * 5, ("motion",) * 5, quaternions=(0,), real_parts=real_parts)


def test_hold_action_stops_and_keeps_the_gripper() -> None:
    last = np.array([0.5, -0.5, 1.0, 0.1, 0.2, 0.3, 1.0])
    assert DELTA.hold_action(last).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert last[0] == 0.5
    assert ABSOLUTE.hold_action(PREVIOUS).tolist() == PREVIOUS.tolist()


def test_absolute_actions_need_an_initial_pose() -> None:
    assert DELTA.initial_action(None).tolist() == [0] * 7
    assert ABSOLUTE.initial_action(PREVIOUS).tolist() == PREVIOUS.tolist()
    for start in (None, np.zeros(10), PREVIOUS[:7], PREVIOUS * np.nan):
        with pytest.raises(ActionError, match="Give where the robot is"):
            ABSOLUTE.initial_action(start)


class OutOfRangeAgent:
    """Predicts positions and gripper commands out of range, and degenerate rotations."""

    obs, actions, n_obs_steps = "state", "absolute", 2
    action_limits = absolute_limits((-0.2, -0.2, 0.9), (0.0, 0.2, 1.1))

    def reset(self, seed: int) -> None:
        pass

    def act(self, history: object) -> np.ndarray:
        return np.tile([5.0, 0.0, 1.0, *[0.0] * 6, 9.0], (8, 1))


def test_episodes_execute_clamped_actions() -> None:
    sim = Simulator(dataclasses.replace(get_task("lift"), horizon=9), actions="absolute")
    executed, step = [], sim.step
    sim.reset(3)
    rotation = matrix_to_6d(sim.eef_pose()[1])
    sim.step = lambda action: executed.append(action) or step(action)
    run_episode(sim, OutOfRangeAgent(), 3)
    sim.close()
    assert len(executed) == 9
    np.testing.assert_allclose(executed, [[0.0, 0.0, 1.0, *rotation, 1.0]] * 9, atol=1e-12)
