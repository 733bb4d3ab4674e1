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
    assert robomimic_info(**nested).controller == robomimic_info().controller
    assert read_recording_info({"env_args": b'{"env_name": "Lift"}'}, "'x'").controller is None
    assert (robosuite_info().version, robomimic_info().version) == ("1.4.0", "1.5.2")


def test_the_robot_is_that_of_the_file() -> None:
    assert [robomimic_info(robots=x).robot for x in ("UR5e", ["IIWA"], ["Panda", "Panda"], [])] == [
        "UR5e",
        "IIWA",
        "",
        "",
    ]
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
        (robosuite_info(type="JOINT_POSITION"), "controller is 'JOINT_POSITION', expected OSC_POSE"),
        (robosuite_info(output_max=[0.1] * 6), r"output_max is \[0.1, .*expected \[0.05"),
        (robosuite_info(impedance_mode="variable"), "impedance_mode is 'variable'"),
        (robomimic_info(robots=["Baxter"]), r"robots are \['Baxter'\], expected one of Panda, Sawyer"),
        (robomimic_info(robots=["Panda", "Panda"]), r"robots are \['Panda', 'Panda'\]"),
        (robomimic_info(control_freq=10), "control rate is 10 Hz, expected 20 Hz"),
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
