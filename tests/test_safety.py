from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ddp_cli.core.normalizer import Normalizer
from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.evaluation.rollout import run_episode
from ddp_cli.rotation import matrix_from_6d, matrix_to_6d, rotvec_to_matrix
from ddp_cli.safety import Safety
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task

TURN = matrix_to_6d(rotvec_to_matrix(np.array([0.3, -1.2, 0.5])))
BEFORE = np.array([0.1, 0.2, 0.9, *TURN, 1.0])
ABSOLUTE = Safety("absolute", (-0.3, -0.3, 0.8), (0.3, 0.3, 1.2))


def goals(**parts: object) -> np.ndarray:
    """One absolute action, like `BEFORE` but for `position`, `rows` or `grip`."""
    values = {"position": BEFORE[:3], "rows": TURN, "grip": 1.0, **parts}
    return np.array([[*values["position"], *values["rows"], values["grip"]]], np.float32)


def test_delta_actions_are_clipped() -> None:
    action = np.array([[2.0, -3.0, 0.5, -0.5, 1.5, 0.0, 7.0]], np.float32)
    safe = Safety("delta").bound(action, np.zeros(7), "start 0")
    assert safe.tolist() == [[1.0, -1.0, 0.5, -0.5, 1.0, 0.0, 1.0]]
    assert safe.dtype == np.float64
    assert action[0, 0] == 2.0  # the caller's array stays


def test_absolute_positions_are_bounded_by_their_box_not_clipped_to_one() -> None:
    far = Safety("absolute").bound(goals(position=[1.5, -2.0, 0.9], grip=3.0), BEFORE, "")
    np.testing.assert_allclose(far[0], [1.5, -2.0, 0.9, *TURN, 1.0], atol=1e-6)
    near = ABSOLUTE.bound(goals(position=[1.5, -2.0, 0.9], grip=-3.0), BEFORE, "")
    np.testing.assert_allclose(near[0], [0.3, -0.3, 0.9, *TURN, -1.0], atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1.0, 2.5, np.pi])
def test_rotations_up_to_pi_pass_unchanged(angle: float) -> None:
    rows = matrix_to_6d(rotvec_to_matrix(angle * np.array([0.6, 0.0, 0.8])))
    np.testing.assert_allclose(ABSOLUTE.bound(goals(rows=rows), BEFORE, "")[0, 3:9], rows, atol=1e-6)


def test_crooked_rotations_are_projected() -> None:
    rows = 3.0 * TURN + np.array([0.1, -0.2, 0.1, 0.2, 0.1, -0.1])
    safe = ABSOLUTE.bound(goals(rows=rows), BEFORE, "")[0, 3:9]
    np.testing.assert_allclose(safe[:3], rows[:3] / np.linalg.norm(rows[:3]), atol=1e-6)
    np.testing.assert_allclose([safe[:3] @ safe[3:], safe[3:] @ safe[3:]], [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize(
    "rows",
    [
        [0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 1, -1, 1, 1, -1],
        [1, 0, 0, -1, 1e-4, 0],
        [1e-5, 0, 0, 0, 1, 0],
        [0] * 6,
    ],
)
def test_rows_that_say_no_rotation_keep_the_one_before(rows: list[float]) -> None:
    other = matrix_to_6d(rotvec_to_matrix(np.array([0.0, 0.7, 0.0])))
    chunk = np.concatenate([goals(rows=rows), goals(rows=other), goals(rows=rows, position=[0, 0, 1])])
    safe = ABSOLUTE.bound(chunk, BEFORE, "")
    np.testing.assert_allclose(safe[:, 3:9], [TURN, other, other], atol=1e-6)
    assert safe[2, :3].tolist() == [0, 0, 1]
    for row in safe:
        assert np.linalg.det(matrix_from_6d(row[3:9])) == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("column", [0, 5, -1])
def test_what_is_not_finite_is_refused(bad: float, column: int) -> None:
    for safety, action in ((Safety("delta"), np.zeros((2, 7))), (ABSOLUTE, goals().astype(float))):
        action[-1, column] = bad
        with pytest.raises(DdpError, match=r"not finite \(start 12\)"):
            safety.bound(action, action[0], "start 12")


def test_actions_of_another_convention_are_refused() -> None:
    with pytest.raises(DdpError, match=r"shape \(8, 7\) \(start 3\), not \(steps, 10\).*absolute"):
        ABSOLUTE.bound(np.zeros((8, 7)), BEFORE, "start 3")


def test_the_box_is_the_range_of_the_store_and_a_margin() -> None:
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-2, 2, (50, 10)).astype(np.float32))
    actions[:, 1] = 0.7  # never varied
    normalizer = Normalizer({"action": 10})
    normalizer.fit({"action": actions})
    scale, offset = (normalizer.get_buffer(f"action_{part}").tolist() for part in ("scale", "offset"))
    safety = Safety.from_normalizer("absolute", scale, offset, margin=0.04)
    np.testing.assert_allclose(safety.low, actions[:, :3].numpy().min(0) - 0.04, atol=1e-5)
    np.testing.assert_allclose(safety.high, actions[:, :3].numpy().max(0) + 0.04, atol=1e-5)
    assert Safety.from_normalizer("delta", [1.0] * 7, [0.0] * 7) == Safety("delta")


def test_holding_stops_and_keeps_the_gripper() -> None:
    last = np.array([0.5, -0.5, 1.0, 0.1, 0.2, 0.3, 1.0])
    assert Safety("delta").hold(last).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert last[0] == 0.5
    assert ABSOLUTE.hold(BEFORE).tolist() == BEFORE.tolist()


def test_absolute_actions_need_a_goal_to_begin_with() -> None:
    assert Safety("delta").first(None).tolist() == [0] * 7
    assert ABSOLUTE.first(BEFORE).tolist() == BEFORE.tolist()
    for start in (None, np.zeros(10), BEFORE[:7], BEFORE * np.nan):
        with pytest.raises(ConfigError, match="absolute"):
            ABSOLUTE.first(start)


class Wild:
    """Asks for far too much, and for no rotation at all."""

    obs, actions, n_obs_steps = "state", "absolute", 2
    safety = Safety("absolute", (-0.2, -0.2, 0.9), (0.0, 0.2, 1.1))

    def reset(self, seed: int) -> None:
        pass

    def act(self, history: object) -> np.ndarray:
        return np.tile([5.0, 0.0, 1.0, *[0.0] * 6, 9.0], (8, 1))


def test_episodes_keep_actions_inside_what_is_safe() -> None:
    sim = Simulator(dataclasses.replace(get_task("lift"), horizon=9), actions="absolute")
    told, step = [], sim.step
    sim.reset(3)
    turn = matrix_to_6d(sim.hand()[1])
    sim.step = lambda action: told.append(action) or step(action)
    run_episode(sim, Wild(), 3)
    sim.close()
    assert len(told) == 9
    np.testing.assert_allclose(told, [[0.0, 0.0, 1.0, *turn, 1.0]] * 9, atol=1e-12)
