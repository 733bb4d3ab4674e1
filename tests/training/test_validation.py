from __future__ import annotations

import numpy as np
import pytest

from ddp_cli.policy_config import PolicyConfig
from ddp_cli.training.validation import action_error


def test_delta_action_errors_are_in_millimetres_and_degrees() -> None:
    a, b = np.zeros((2, 8, 7)), np.zeros((2, 8, 7))
    b[..., 0] = 0.5  # of 5 cm
    b[..., 5] = 1.0  # 0.5 rad about z
    b[..., 6] = 1.0  # the gripper is not part of the error
    millimetres, degrees = action_error(PolicyConfig(), a, b)
    assert millimetres == pytest.approx(25.0)
    assert degrees == pytest.approx(np.degrees(0.5))


def test_absolute_action_errors_are_in_millimetres_and_degrees() -> None:
    config = PolicyConfig(actions="absolute")
    a, b = np.zeros((1, 4, 10)), np.zeros((1, 4, 10))
    a[..., 3], a[..., 7] = 2.0, 0.5  # rows of any length
    b[..., 2] = 0.003
    b[..., 4], b[..., 6] = 1.0, -1.0  # a quarter turn about z
    assert action_error(config, a, b) == pytest.approx((3.0, 90.0))


@pytest.mark.parametrize("rows", [[0, 0, 0, 0, 0, 0], [1, 2, 3, -1, -2, -3], [1, 0, 0, 0, 0, 0]])
def test_a_degenerate_rotation_6d_counts_as_half_a_turn(rows: list[float]) -> None:
    good = np.array([0, 0, 0, 1, 0, 0, 0, 1, 0, 0], float)
    bad = good.copy()
    bad[3:9] = rows
    assert action_error(PolicyConfig(actions="absolute"), bad[None], good[None])[1] == pytest.approx(180.0)
