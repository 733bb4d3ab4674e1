from __future__ import annotations

import json
import re

import pytest

from ddp_cli.data.env_metadata import RecordingInfo, read_recording_info, version_tuple
from ddp_cli.errors import DataError
from ddp_cli.sim.simulator import env_args
from ddp_cli.tasks import get_task

FLAT = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "kp": 150, "impedance_mode": "fixed", "control_delta": True,
}  # fmt: skip
"""As robosuite <= 1.4 writes it."""


def collected(**controller: object) -> RecordingInfo:
    """By robosuite's own collector."""
    info = {"env_name": "Lift", "robots": "Panda", "controller_configs": FLAT | controller}
    return read_recording_info({"env": "Lift", "env_info": json.dumps(info), "repository_version": "1.4.0"}, "'x'")


def mimicked(**kwargs: object) -> RecordingInfo:
    """By robomimic, with robosuite 1.5."""
    args = env_args(get_task("lift"))
    return read_recording_info({"env_args": json.dumps(args | {"env_kwargs": args["env_kwargs"] | kwargs})}, "'x'")


def parts(**changes: object) -> dict:
    arm = env_args(get_task("lift"))["env_kwargs"]["controller_configs"]["body_parts"]["right"] | changes
    return {"controller_configs": {"type": "BASIC", "body_parts": {"right": arm}}}


def test_every_generation_tells_the_same() -> None:
    for origin in (collected(), mimicked(), mimicked(**parts())):
        assert (origin.env_name, origin.actions, origin.incompatibilities()) == ("Lift", "delta", [])
    nested = {"controller_configs": {"body_parts": {"arms": parts()["controller_configs"]["body_parts"]}}}
    assert mimicked(**nested).controller == mimicked().controller
    assert read_recording_info({"env_args": b'{"env_name": "Lift"}'}, "'x'").controller is None
    assert (collected().version, mimicked().version) == ("1.4.0", "1.5.2")


def test_control_delta_never_passes_silently() -> None:
    assert collected(control_delta=False).actions == "absolute"
    assert mimicked(**parts(input_type="absolute", input_ref_frame="world")).actions == "absolute"
    assert "frame 'base'" in mimicked(**parts(input_type="absolute", input_ref_frame="base")).incompatibilities()[0]


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (collected(type="JOINT_POSITION"), "controller is 'JOINT_POSITION', read is OSC_POSE"),
        (collected(output_max=[0.1] * 6), r"output_max is \[0.1, .*read is \[0.05"),
        (collected(impedance_mode="variable"), "impedance_mode is 'variable'"),
        (mimicked(robots=["Sawyer"]), r"robots are \['Sawyer'\]"),
        (mimicked(robots=["Panda", "Panda"]), "a single Panda"),
        (mimicked(control_freq=10), "at 10 Hz, read is 20"),
    ],
)
def test_what_would_mean_something_else_here_is_said(origin: RecordingInfo, words: str) -> None:
    [obstacle] = origin.incompatibilities()
    assert re.search(words, obstacle)


@pytest.mark.parametrize(
    ("attrs", "words"),
    [
        ({}, "does not say its environment"),
        ({"env_args": "Lift"}, "env_args is no JSON object"),
        ({"env_args": 7}, "env_args is no JSON object"),
        ({"env_args": "[" * 100_000}, "env_args is no JSON object"),
        ({"env_args": '{"env_name": ["Lift"]}'}, r"env_name is \['Lift'\]"),
        ({"env": "Lift", "env_info": b"\xff"}, "env_info is no JSON object"),
        ({"env_args": '{"env_name": "Lift", "env_kwargs": {"controller_configs": 3}}'}, "describes no arm"),
        ({"env_args": '{"env_name": "Lift", "env_kwargs": {"controller_configs": [{}, {}]}}'}, "describes no arm"),
    ],
)
def test_what_cannot_be_read_is_named(attrs: dict, words: str) -> None:
    with pytest.raises(DataError, match=f"'x'.*{words}"):
        read_recording_info(attrs, "'x'")


def test_old_versions_stepped_their_physics_otherwise() -> None:
    assert not collected().lite_physics
    assert mimicked().lite_physics
    assert version_tuple("1.4.1") < version_tuple("1.10")
    assert version_tuple("1.10.0rc1") == (1, 10)
