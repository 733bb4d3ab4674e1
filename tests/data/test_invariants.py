from __future__ import annotations

import numpy as np
import pytest

from ddp_cli.data.invariants import (
    check_intended,
    check_quaternions,
    check_time,
    looks_absolute,
    share_of_clipped_steps,
)
from ddp_cli.errors import DataError

TIME = np.arange(40) / 20.0


def test_regular_and_unrecorded_times_are_accepted() -> None:
    check_time(TIME + 3.0, "demo_0", rate=20)
    check_time(np.zeros(40), "demo_0", rate=20)
    check_time(TIME[:1], "demo_0", rate=20)
    check_time(np.arange(40) / 10.0, "demo_0", rate=10)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (np.delete(TIME, 12), r"demo_0: the time changes by 0.1 s after step 11, expected 0.05 s \(1 of 38 steps\)"),
        (np.concatenate([TIME[:20], TIME]), "changes by -0.95 s after step 19.*several episodes in one"),
        (TIME[::2], "0.1 s after step 0.*recorded at another rate, or only some of the frames were kept"),
        (TIME[::-1], "-0.05 s after step 0"),
    ],
)
def test_jumps_of_the_time_are_refused(time: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_time(time, "demo_0", rate=20)


def test_quaternions_must_have_norm_1() -> None:
    quaternions = np.random.default_rng(0).normal(size=(30, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    check_quaternions(quaternions.astype(np.float16), "demo_0")
    quaternions[7] *= 1.42
    with pytest.raises(DataError, match="demo_0: the quaternion of step 7 has norm 1.42, expected 1"):
        check_quaternions(quaternions, "demo_0")


def test_share_of_clipped_steps() -> None:
    actions = np.zeros((10, 7))
    actions[2, 3] = actions[2, 4] = -3.75
    actions[5, 6] = 1.0000001
    assert share_of_clipped_steps(actions) == 0.1


def absolute_actions(seed: int = 0) -> np.ndarray:
    """Goals that move by up to 1.5 cm per step; the gripper points down."""
    rng = np.random.default_rng(seed)
    positions = np.array([0.1, 0, 0.9]) + rng.uniform(-0.015, 0.015, (50, 3)).cumsum(0)
    rotations = np.array([3.1, 0.1, 0]) + rng.uniform(-0.02, 0.02, (50, 3))
    return np.concatenate([positions, rotations, rng.choice([-1, 1], (50, 1))], axis=1)


def test_absolute_actions_are_recognized_by_their_values() -> None:
    assert looks_absolute(absolute_actions())
    assert looks_absolute(absolute_actions()[:1])
    rng = np.random.default_rng(1)
    assert not looks_absolute(rng.uniform(-1, 1, (50, 7)))
    keyboard = np.zeros((50, 7))  # keys that are held: beyond 1, and without jumps
    keyboard[:, 0] = 3.75
    assert not looks_absolute(keyboard)
    assert not looks_absolute(rng.uniform(-2, 2, (50, 7)))


def test_intended_actions_resemble_the_executed_ones() -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (40, 7))
    disturbed = actions + rng.normal(0, 0.2, actions.shape)
    check_intended(actions, disturbed, "demo_0")
    check_intended(actions[:3] * 0, actions[:3] * 0, "demo_0")
    for wrong in (-actions, actions * 0, rng.uniform(-1, 1, (40, 7))):
        with pytest.raises(DataError, match="demo_0: its intended actions do not resemble the executed ones"):
            check_intended(wrong, disturbed, "demo_0")
