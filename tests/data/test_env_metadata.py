from __future__ import annotations

import json
import re

import pytest

from ddp_cli.data.env_metadata import RecordingInfo, read_recording_info, version_tuple
from ddp_cli.errors import DataError
from ddp_cli.sim.environment import env_args
from ddp_cli.tasks import get_task

FLAT = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "kp": 150, "impedance_mode": "fixed", "control_delta": True,
}  # fmt: skip
"""A controller configuration of robosuite <= 1.4."""


def robosuite_info(**controller: object) -> RecordingInfo:
    """Metadata from robosuite's collector."""
    env_info = {"env_name": "Lift", "robots": "Panda", "controller_configs": FLAT | controller}
    return read_recording_info({"env": "Lift", "env_info": json.dumps(env_info), "repository_version": "1.4.0"}, "'x'")


def robomimic_info(**kwargs: object) -> RecordingInfo:
    """Metadata from robomimic, with robosuite 1.5."""
    args = env_args(get_task("lift"))
    return read_recording_info({"env_args": json.dumps(args | {"env_kwargs": args["env_kwargs"] | kwargs})}, "'x'")


def arm_config(**changes: object) -> dict:
    arm = env_args(get_task("lift"))["env_kwargs"]["controller_configs"]["body_parts"]["right"] | changes
    return {"controller_configs": {"type": "BASIC", "body_parts": {"right": arm}}}


def test_metadata_of_every_version_is_equivalent() -> None:
    for info in (robosuite_info(), robomimic_info(), robomimic_info(**arm_config())):
        assert (info.env_name, info.actions, info.incompatibilities()) == ("Lift", "delta", [])
    nested = {"controller_configs": {"body_parts": {"arms": arm_config()["controller_configs"]["body_parts"]}}}
    assert robomimic_info(**nested).controllers == robomimic_info().controllers
    assert read_recording_info({"env_args": b'{"env_name": "Lift"}'}, "'x'").controllers == ()
    assert (robosuite_info().version, robomimic_info().version) == ("1.4.0", "1.5.2")


def test_the_robots_are_those_of_the_file() -> None:
    files = ("UR5e", ["IIWA"], ["Panda", "Panda"], [], [1])
    expected = [("UR5e",), ("IIWA",), ("Panda", "Panda"), (), ()]
    assert [robomimic_info(robots=x, controller_configs=None).robots for x in files] == expected
    assert robomimic_info(robots=["UR5e"]).incompatibilities() == []


def test_absolute_actions_are_recognized() -> None:
    assert robosuite_info(control_delta=False).actions == "absolute"
    assert robomimic_info(**arm_config(input_type="absolute", input_ref_frame="world")).actions == "absolute"
    assert (
        "frame 'base'"
        in robomimic_info(**arm_config(input_type="absolute", input_ref_frame="base")).incompatibilities()[0]
    )


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (robosuite_info(type="MPC"), "controller is 'MPC', expected one of OSC_POSE, OSC_POSITION"),
        (robosuite_info(position_limits=[[0, 0, 0], [1, 1, 1]]), "position_limits .* not implemented"),
        (robomimic_info(robots=["Panda"] * 3, controller_configs=None), "expected one or two names"),
        (robomimic_info(robots=[3], controller_configs=None), r"robots are \[3\]"),
        (robomimic_info(control_freq="fast"), "control rate is 'fast', expected 1 to 1000 Hz"),
        (robomimic_info(**arm_config(input_ref_frame="camera")), "frame 'camera', expected 'base' or 'world'"),
    ],
)
def test_incompatibilities_are_named(info: RecordingInfo, message: str) -> None:
    [incompatibility] = info.incompatibilities()
    assert re.search(message, incompatibility)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({}, "does not name its environment"),
        (
            {"env_args": json.dumps({"env_name": "Lift", "env_kwargs": None})},
            "env_kwargs is None, expected the arguments",
        ),
        ({"env_args": "Lift"}, "env_args is not a JSON object"),
        ({"env_args": 7}, "env_args is not a JSON object"),
        ({"env_args": "[" * 100_000}, "env_args is not a JSON object"),
        ({"env_args": '{"env_name": ["Lift"]}'}, r"env_name is \['Lift'\]"),
        ({"env": "Lift", "env_info": b"\xff"}, "env_info is not a JSON object"),
        ({"env_args": '{"env_name": "Lift", "env_kwargs": {"controller_configs": 3}}'}, "no configuration of an arm"),
        (
            {"env_args": '{"env_name": "Lift", "env_kwargs": {"controller_configs": [{}, {}]}}'},
            "no configuration of an arm",
        ),
    ],
)
def test_invalid_metadata_is_named(attrs: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"'x'.*{message}"):
        read_recording_info(attrs, "'x'")


def test_old_versions_did_not_use_lite_physics() -> None:
    assert not robosuite_info().lite_physics
    assert robomimic_info().lite_physics
    assert version_tuple("1.4.1") < version_tuple("1.10")
    assert version_tuple("1.10.0rc1") == (1, 10)


def settings(info: RecordingInfo) -> list[dict]:
    return [controller.parts for controller in info.controllers]


def test_only_what_differs_from_the_default_controller_is_kept() -> None:
    assert settings(robosuite_info()) == settings(robomimic_info()) == [{}]
    assert settings(robosuite_info(kp=[150] * 6, input_max=[1] * 6, ramp_ratio=0.5, damping=1)) == [{}]
    assert settings(robosuite_info(kp=300, damping=2)) == [{"right": {"kp": 300, "damping_ratio": 2}}]
    [joints] = settings(robosuite_info(type="JOINT_VELOCITY", output_max=0.5))
    assert joints["right"]["type"] == "JOINT_VELOCITY"
    assert joints["right"]["output_max"] == 0.5
    assert "control_delta" not in joints["right"]
    # Absolute actions have no scale: 1.4 files state that of delta actions.
    assert settings(robosuite_info(control_delta=False, output_max=[1] * 6)) == [{}]


def test_delta_actions_of_two_arms_were_in_the_world_frame_up_to_robosuite_1_4() -> None:
    def two_arms(version: str, robots: list[str]) -> RecordingInfo:
        env_info = {"env_name": "TwoArmLift", "robots": robots, "controller_configs": FLAT}
        attrs = {"env": "TwoArmLift", "env_info": json.dumps(env_info), "repository_version": version}
        return read_recording_info(attrs, "'x'")

    world = {"right": {"input_ref_frame": "world"}}
    assert settings(two_arms("1.4.1", ["Panda", "Panda"])) == [world, world]
    assert settings(two_arms("1.5.1", ["Panda", "Panda"])) == [{}, {}]
    # One arm: its base is not turned, but that of an IIWA moves.
    assert settings(two_arms("1.4.1", ["UR5e"])) == [{}]
    assert settings(two_arms("1.4.1", ["IIWA"])) == [world]


def test_arguments_of_the_environment_are_kept_unless_they_are_the_default() -> None:
    defaults = {"mount_types": "default", "gripper_types": ["default"] * 2, "env_configuration": "single-arm-opposed"}
    info = robomimic_info(**defaults, camera_names="agentview", use_latch=False, horizon=500)
    assert info.other_kwargs == {"use_latch": False}
    assert robomimic_info(gripper_types="WipingGripper", mount_types="RethinkMount").other_kwargs == {
        "gripper_types": "WipingGripper",
        "base_types": "RethinkMount",
    }
