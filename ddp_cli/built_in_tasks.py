"""The built-in tasks of robosuite, as arguments of `tasks.robosuite_task`.

They use Pandas with their grippers, controlled at 20 Hz by operational-space control of the end-effector pose.
"""

from __future__ import annotations

from typing import Any

STATE_DIMS = {
    "lift": 32, "can": 71, "square": 45, "transport": 115, "tool_hang": 58, "two_arm_lift": 50, "stack": 45, "door": 23,
}  # fmt: skip
"""Width of the simulator state of the built-in tasks; that of others is read from the simulator."""


def _wrist_camera(robot: int) -> dict[str, str]:
    return {f"robot{robot}_eye_in_hand_image": f"robot{robot}_eye_in_hand"}


BUILT_IN_TASKS: dict[str, dict[str, Any]] = {
    "lift": {
        "env_name": "Lift",
        "object": {"cube_pos": 3, "cube_quat": 4, "gripper_to_cube_pos": 3},
    },
    "can": {
        "env_name": "PickPlaceCan",
        "model_varies": False,
        "object": {"Can_pos": 3, "Can_quat": 4, "Can_to_robot0_eef_pos": 3, "Can_to_robot0_eef_quat": 4},
    },
    "square": {
        "env_name": "NutAssemblySquare",
        "model_varies": False,
        "object": {
            "SquareNut_pos": 3,
            "SquareNut_quat": 4,
            "SquareNut_to_robot0_eef_pos": 3,
            "SquareNut_to_robot0_eef_quat": 4,
        },
    },
    "transport": {
        "env_name": "TwoArmTransport",
        "horizon": 700,
        "robots": ("Panda", "Panda"),
        "frame": "world",
        "cameras": {
            "shouldercamera0_image": "shouldercamera0",
            **_wrist_camera(0),
            "shouldercamera1_image": "shouldercamera1",
            **_wrist_camera(1),
        },
        "object": {
            "payload_pos": 3,
            "payload_quat": 4,
            "trash_pos": 3,
            "trash_quat": 4,
            "lid_handle_pos": 3,
            "lid_handle_quat": 4,
            "target_bin_pos": 3,
            "trash_bin_pos": 3,
            "payload_in_target_bin": 1,
            "trash_in_trash_bin": 1,
            "gripper0_to_payload": 3,
            "gripper0_to_lid_handle": 3,
            "gripper1_to_payload": 3,
            "gripper1_to_trash": 3,
        },
    },
    "tool_hang": {
        "env_name": "ToolHang",
        "horizon": 700,
        "size": (240, 240),
        "model_varies": False,
        "cameras": {"sideview_image": "sideview", **_wrist_camera(0)},
        "object": {
            "base_pos": 3,
            "base_quat": 4,
            "base_to_robot0_eef_pos": 3,
            "base_to_robot0_eef_quat": 4,
            "frame_pos": 3,
            "frame_quat": 4,
            "frame_to_robot0_eef_pos": 3,
            "frame_to_robot0_eef_quat": 4,
            "tool_pos": 3,
            "tool_quat": 4,
            "tool_to_robot0_eef_pos": 3,
            "tool_to_robot0_eef_quat": 4,
            "frame_is_assembled": 1,
            "tool_on_frame": 1,
        },
    },
    "two_arm_lift": {
        "env_name": "TwoArmLift",
        "robots": ("Panda", "Panda"),
        "size": (96, 96),
        "model_varies": False,
        "cameras": {"agentview_image": "agentview", **_wrist_camera(0), **_wrist_camera(1)},
        "object": {
            "pot_pos": 3,
            "pot_quat": 4,
            "handle0_xpos": 3,
            "handle1_xpos": 3,
            "gripper0_to_handle0": 3,
            "gripper1_to_handle1": 3,
        },
    },
    "stack": {
        "env_name": "Stack",
        "model_varies": False,
        "object": {
            "cubeA_pos": 3,
            "cubeA_quat": 4,
            "cubeB_pos": 3,
            "cubeB_quat": 4,
            "cubeA_to_cubeB": 3,
            "gripper_to_cubeA": 3,
            "gripper_to_cubeB": 3,
        },
    },
    "door": {
        "env_name": "Door",
        "object": {
            "door_pos": 3,
            "handle_pos": 3,
            "hinge_qpos": 1,
            "door_to_eef_pos": 3,
            "handle_to_eef_pos": 3,
            "handle_qpos": 1,
        },
    },
}
"""The parts of `object` are in the order of the published datasets (robosuite 1.5 reversed it).

Delta actions of the published datasets of `transport` are in the world frame: up to robosuite 1.4 there was no other.
"""
