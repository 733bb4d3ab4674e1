"""Errors for tasks that do not fit their environment."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import DOOR

from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.sim.simulator import Simulator
from ddp_cli.sim.task_checks import check_env_name, check_task_observables
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import TASKS, robosuite_task

TASK = task_from_json(DOOR)
CAMERAS = ["frontview", "agentview"]
WIDTHS = {**TASK.low_dim, **TASK.robosuite.object, "robot0_eef_quat": 4}


def test_environments_of_robosuite_are_valid() -> None:
    check_env_name("TwoArmLift", ["Door", "TwoArmLift"])
    with pytest.raises(UnknownNameError, match="'Dor', did you mean 'Door'.*Valid: Door, Lift, TwoArmLift"):
        check_env_name("Dor", ["Lift", "Door", "TwoArmLift"])


def test_valid_task_is_accepted() -> None:
    check_task_observables(TASK, 7, CAMERAS, WIDTHS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"a_image": "frontviw"}}, "cameras.a_image: .*'frontviw', did you mean 'frontview'.*agentview"),
        (
            {"low_dim": {"robot0_eef_qat": 4}},
            "low_dim: .*'robot0_eef_qat', did you mean 'robot0_eef_quat'.*hinge_qpos 1",
        ),
        ({"low_dim": {"robot0_eef_quat": 3}}, "'robot0_eef_quat' has width 4, not 3. Write \"robot0_eef_quat\": 4"),
        ({"object": {"handle": 3}}, "object: .*'handle', did you mean 'handle_pos'"),
        ({"object": {"hinge_qpos": 2}}, "object: 'hinge_qpos' has width 1, not 2"),
    ],
)
def test_mismatch_is_named_with_the_valid_values(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_task_observables(task_from_json(DOOR | changes), 7, CAMERAS, WIDTHS)


def test_images_that_are_too_large_to_be_rendered_are_rejected() -> None:
    description = TASK.to_json()
    assert isinstance(description, dict)
    description["schema"]["cameras"]["frontview_image"] = {"height": 480, "width": 641}
    with pytest.raises(ConfigError, match="images of 480x641 pixels cannot be rendered. Valid: up to 640x640"):
        check_task_observables(task_from_json(description), 7, CAMERAS, WIDTHS)


def test_another_action_width_is_rejected() -> None:
    with pytest.raises(ConfigError, match="actions of 6 values"):
        check_task_observables(TASK, 6, CAMERAS, WIDTHS)


def test_simulator_lists_environments_and_observables() -> None:
    with pytest.raises(ConfigError, match="environment 'Doors', did you mean 'Door'.*NutAssemblyRound"):
        Simulator(task_from_json(DOOR | {"env_name": "Doors"}))
    with pytest.raises(ConfigError, match="Wipe takes actions of 6 values"):
        Simulator(task_from_json(DOOR | {"env_name": "Wipe"}))
    with pytest.raises(ConfigError, match="Lift has no observable 'door_pos'.*cube_pos 3"):
        Simulator(task_from_json(DOOR | {"env_name": "Lift"}))


def test_example_in_the_documentation_fits() -> None:
    text = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text()
    example = re.search(r"^\{\n  \"name\".*?^\}", text, re.DOTALL | re.MULTILINE)
    assert example
    Simulator(task_from_json(json.loads(example[0]))).close()


@pytest.mark.slow
def test_built_in_environment_with_another_camera_and_fewer_observables() -> None:
    changes = {"cameras": {"sideview_image": "sideview"}, "low_dim": {"robot0_gripper_qpos": 2}}
    sim = Simulator(robosuite_task("lift_side", "Lift", **changes, object=TASKS["lift"].robosuite.object))
    sim.reset(0)
    obs = sim.observe("image")
    assert {k: v.shape for k, v in obs.items()} == {"sideview_image": (84, 84, 3), "robot0_gripper_qpos": (2,)}
    default = Simulator(TASKS["lift"])
    default.reset(0)
    assert (sim.low_dim(["object"])["object"] == default.low_dim(["object"])["object"]).all()
    assert (obs["sideview_image"] != default.image("agentview_image")).mean() > 0.3
    default.close()
    sim.close()
