from __future__ import annotations

import pytest

from ddp_cli.data.lerobot_layout import flatten_names
from ddp_cli.data.lerobot_names import observable_names, order_of_action, order_of_observables
from ddp_cli.errors import DataError
from ddp_cli.tasks import proprioception

FOUND_ORDERS = [
    (observable_names(proprioception(["Panda"])), None),
    (["gripper_left", "gripper_right", "x", "y", "z", "qw", "qx", "qy", "qz"], [2, 3, 4, 6, 7, 8, 5, 0, 1]),
    (["x", "y", "z", "qx", "qy", "qz", "qw", "gripper", "gripper"], None),
    ([f"ee.{n}" for n in "zyx"] + ["ee.qx", "ee.qy", "ee.qz", "ee.qw", "gripper_0", "gripper_1"],
     [2, 1, 0, 3, 4, 5, 6, 7, 8]),
    (["eef_pos_x", "eef_pos_y", "eef_pos_z", "eef_quat_w", "eef_quat_x", "eef_quat_y", "eef_quat_z",
      "panda_finger_joint1", "panda_finger_joint2"], [0, 1, 2, 4, 5, 6, 3, 7, 8]),
    (["right_finger", "left_finger", "pos_1", "pos_2", "pos_3", "quat_1", "quat_2", "quat_3", "quat_4"],
     [2, 3, 4, 5, 6, 7, 8, 1, 0]),
    (["positionX", "positionY", "positionZ", "orientationW", "orientationX", "orientationY", "orientationZ",
      "leftFinger", "rightFinger"], [0, 1, 2, 4, 5, 6, 3, 7, 8]),
    ([f"motor_{i}" for i in range(9)], None),
    ([f"{i}" for i in range(9)], None),
    (["state"], None),
    (None, None),
]  # fmt: skip

REFUSED_NAMES = [
    ([f"joint_{i}" for i in range(9)], "the names joint_0, .* expected those of robot0_eef_pos"),
    (["x", "y", "z", "roll", "pitch", "yaw", "pad", "gripper", "gripper"], "the names roll, pitch, yaw, pad; expected"),
    (["x", "x", "z", "qx", "qy", "qz", "qw", "gripper", "gripper"], "several of the same value"),
    (["left_x", "y", "z", "qx", "qy", "qz", "qw", "gripper", "gripper"], "the names left_x; expected"),
    (["x_vel", "y", "z", "qx", "qy", "qz", "qw", "gripper", "gripper"], "the names x_vel; expected"),
    (["x", "y", "z"], r"has 3 names \(x, y, z\) for 9 values"),
]


@pytest.mark.parametrize(("names", "order"), FOUND_ORDERS)
def test_names_tell_the_order(names: list[str] | None, order: list[int] | None) -> None:
    """The position in the feature of each value that the task needs; None where nothing has to be reordered."""
    assert order_of_observables(flatten_names(names), proprioception(["Panda"]), "state") == order


@pytest.mark.parametrize(("names", "message"), REFUSED_NAMES)
def test_names_of_other_values_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=f"^state .*{message}"):
        order_of_observables(tuple(names), proprioception(["Panda"]), "state")


def test_observables_that_differ_in_one_word() -> None:
    """Own names are taken literally: without the words that say nothing, both are `cube_pos`."""
    widths = {"cube_pos": 3, "eef_cube_pos": 3}
    names = tuple(observable_names({"eef_cube_pos": 3, "cube_pos": 3}))
    assert order_of_observables(names, widths, "state") == [3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize(
    ("names", "convention", "width", "order"),
    [
        (["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper"], "delta", 7, None),
        (["gripper", "delta_x", "delta_y", "delta_z", "rx", "ry", "rz"], "delta", 7, [1, 2, 3, 4, 5, 6, 0]),
        (["dx", "dy", "dz", "drx", "dry", "drz", "grip"], "delta", 7, None),
        (["ee.x", "ee.y", "ee.z", "ee.wx", "ee.wy", "ee.wz", "ee.gripper_pos"], "absolute", 7, None),
        ([f"rot6d_{i}" for i in range(6)] + ["x", "y", "z", "gripper"], "absolute", 10, [6, 7, 8, 0, 1, 2, 3, 4, 5, 9]),
        (["actions"], "delta", 7, None),
    ],
)
def test_names_of_actions(names: list[str], convention: str, width: int, order: list[int] | None) -> None:
    assert order_of_action(tuple(names), convention, width, "action") == order


@pytest.mark.parametrize(
    ("names", "convention", "message"),
    [
        (["delta_x", "delta_y", "delta_z", "rx", "ry", "rz", "gripper"], "absolute", "names of delta actions"),
        (["goal_x", "goal_y", "goal_z", "rx", "ry", "rz", "gripper"], "delta", "names of absolute actions"),
        (["x", "y", "z", "roll", "pitch", "yaw", "gripper"], "delta", "roll, pitch, yaw; expected those of position"),
    ],
)
def test_names_of_other_actions_are_refused(names: list[str], convention: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        order_of_action(tuple(names), convention, 7, "action")


@pytest.mark.parametrize(
    "names",
    [["x", "y"], [["x", "y"]], {"motors": ["x", "y"]}, {"axes": [["x"], ["y"]]}, {"y": 1, "x": 0}],
)
def test_forms_of_names(names: object) -> None:
    assert flatten_names(names) == ("x", "y")


@pytest.mark.parametrize("names", [None, [], {}, 3, [[[[["deep"]]]]], {"motors": None}])
def test_no_names(names: object) -> None:
    assert flatten_names(names) is None
