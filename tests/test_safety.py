"""Actions are clamped to their limits, the same in episodes and on a robot."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ddp_cli.core.normalizer import Normalizer
from ddp_cli.evaluation.rollout import run_episode
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d, rotvec_to_matrix
from ddp_cli.safety import WIDTHS, ActionError, ActionLimits
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import ACTIONS, get_task

ROTATION = matrix_to_6d(rotvec_to_matrix(np.array([0.3, -1.2, 0.5])))
PREVIOUS = np.array([0.1, 0.2, 0.9, *ROTATION, 1.0])
ABSOLUTE = ActionLimits("absolute", (-0.3, -0.3, 0.8), (0.3, 0.3, 1.2))


def absolute_action(**parts: object) -> np.ndarray:
    """A chunk of one absolute action: `PREVIOUS`, with other `position`, `rotation` or `gripper`."""
    values = {"position": PREVIOUS[:3], "rotation": ROTATION, "gripper": 1.0, **parts}
    return np.array([[*values["position"], *values["rotation"], values["gripper"]]], np.float32)


def test_delta_actions_are_clipped() -> None:
    action = np.array([[2.0, -3.0, 0.5, -0.5, 1.5, 0.0, 7.0]], np.float32)
    clamped = ActionLimits("delta").clamp(action, np.zeros(7), "seed 0")
    assert clamped.tolist() == [[1.0, -1.0, 0.5, -0.5, 1.0, 0.0, 1.0]]
    assert clamped.dtype == np.float64
    assert action[0, 0] == 2.0  # the argument is not modified


def test_absolute_positions_are_clipped_to_their_box_not_to_1() -> None:
    unlimited = ActionLimits("absolute").clamp(absolute_action(position=[1.5, -2.0, 0.9], gripper=3.0), PREVIOUS, "")
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
        (ActionLimits("delta"), np.zeros((2, 7))),
        (ABSOLUTE, absolute_action().astype(float)),
    ):
        action[-1, column] = value
        with pytest.raises(ActionError, match=r"not finite \(seed 12\)"):
            action_limits.clamp(action, action[0], "seed 12")


def test_actions_of_another_convention_raise_an_error() -> None:
    with pytest.raises(ActionError, match=r"shape \(8, 7\) \(seed 3\), expected \(steps, 10\).*absolute"):
        ABSOLUTE.clamp(np.zeros((8, 7)), PREVIOUS, "seed 3")


def test_the_width_of_actions_is_that_of_stores() -> None:
    assert {name: convention["dim"] for name, convention in ACTIONS.items()} == WIDTHS


def test_box_is_the_range_of_the_training_positions_plus_a_margin() -> None:
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-2, 2, (50, 10)).astype(np.float32))
    actions[:, 1] = 0.7  # constant
    normalizer = Normalizer({"action": 10})
    normalizer.fit({"action": actions})
    scale, offset = (normalizer.get_buffer(f"action_{part}").tolist() for part in ("scale", "offset"))
    low, high = actions[:, :3].numpy().min(0), actions[:, :3].numpy().max(0)
    for limits in (
        ActionLimits.from_normalizer("absolute", scale, offset),
        ActionLimits.from_range("absolute", low.tolist(), high.tolist()),
    ):
        np.testing.assert_allclose(limits.low, low - 0.05, atol=1e-5)
        np.testing.assert_allclose(limits.high, high + 0.05, atol=1e-5)
    assert ActionLimits.from_normalizer("delta", [1.0] * 7, [0.0] * 7) == ActionLimits("delta")
    assert ActionLimits.from_range("delta", [0.0] * 3, [1.0] * 3) == ActionLimits("delta")


def test_scale_1_is_a_constant_only_with_an_offset() -> None:
    """Identity normalizers, as in published checkpoints, do not fix the robot at the origin."""
    identity = ActionLimits.from_normalizer("absolute", [1.0] * 10, [0.0] * 10)
    assert (identity.low, identity.high) == ((-1.05,) * 3, (1.05,) * 3)
    mixed = ActionLimits.from_normalizer("absolute", [1.0, 1.0, -4.0], [0.0, -0.7, 2.0])
    np.testing.assert_allclose([mixed.low, mixed.high], [[-1.05, 0.65, 0.2], [1.05, 0.75, 0.8]])


@pytest.mark.parametrize(
    ("low", "high"),
    [([0.0, 0.0, 1.0], [1.0, 1.0, 0.0]), ([0.0, np.nan, 0.0], [1.0] * 3), ([0.0], [1.0]), ([0.0] * 4, [1.0] * 4)],
)
def test_what_is_not_a_box_is_refused(low: list[float], high: list[float]) -> None:
    with pytest.raises(ActionError, match="are not a box"):
        ActionLimits.from_range("absolute", low, high)
    with pytest.raises(ActionError, match="are not a box"):
        ActionLimits.from_normalizer("absolute", [0.0, 1.0, 1.0], [0.0] * 3)


def test_limits_are_written_to_json_and_read_back() -> None:
    for limits, low in (
        (ActionLimits("delta"), [-1.0] * 7),
        (ABSOLUTE, [-0.3, -0.3, 0.8, *[None] * 6, -1.0]),
        (ActionLimits("absolute"), [*[None] * 9, -1.0]),
    ):
        content = json.loads(json.dumps(limits.to_json()))
        assert content["low"] == low
        assert ActionLimits.from_json(content) == limits
    with pytest.raises(ActionError, match="limits of 6 and 7 values are not those of an action"):
        ActionLimits.from_json({"low": [0.0] * 6, "high": [0.0] * 7})


def test_hold_action_stops_and_keeps_the_gripper() -> None:
    last = np.array([0.5, -0.5, 1.0, 0.1, 0.2, 0.3, 1.0])
    assert ActionLimits("delta").hold_action(last).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert last[0] == 0.5
    assert ABSOLUTE.hold_action(PREVIOUS).tolist() == PREVIOUS.tolist()


def test_absolute_actions_need_an_initial_pose() -> None:
    assert ActionLimits("delta").initial_action(None).tolist() == [0] * 7
    assert ABSOLUTE.initial_action(PREVIOUS).tolist() == PREVIOUS.tolist()
    for start in (None, np.zeros(10), PREVIOUS[:7], PREVIOUS * np.nan):
        with pytest.raises(ActionError, match="absolute"):
            ABSOLUTE.initial_action(start)


class OutOfRangeAgent:
    """Predicts positions and gripper commands out of range, and degenerate rotations."""

    obs, actions, n_obs_steps = "state", "absolute", 2
    action_limits = ActionLimits("absolute", (-0.2, -0.2, 0.9), (0.0, 0.2, 1.1))

    def reset(self, seed: int) -> None:
        pass

    def act(self, history: object) -> np.ndarray:
        return np.tile([5.0, 0.0, 1.0, *[0.0] * 6, 9.0], (8, 1))


def test_episodes_execute_clamped_actions() -> None:
    sim = Simulator(get_task("lift").model_copy(update={"horizon": 9}), actions="absolute")
    executed, step = [], sim.step
    sim.reset(3)
    rotation = matrix_to_6d(sim.eef_pose()[1])
    sim.step = lambda action: executed.append(action) or step(action)
    run_episode(sim, OutOfRangeAgent(), 3)
    sim.close()
    assert len(executed) == 9
    np.testing.assert_allclose(executed, [[0.0, 0.0, 1.0, *rotation, 1.0]] * 9, atol=1e-12)
