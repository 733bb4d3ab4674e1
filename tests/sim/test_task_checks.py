from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from conftest import DOOR

from ddp_cli.errors import ConfigError
from ddp_cli.sim.simulator import Simulator
from ddp_cli.sim.task_checks import check_env_name, check_task_observables
from ddp_cli.tasks import TASKS, task_from_json

TASK = task_from_json(DOOR)
CAMERAS = ["frontview", "agentview"]
WIDTHS = {**TASK.low_dim, **TASK.object, "robot0_eef_quat": 4}


def test_environments_of_one_arm_are_known() -> None:
    check_env_name("Door", ["Door", "TwoArmLift"])
    with pytest.raises(ConfigError, match="'Dor' for one arm, did you mean 'Door'.*Valid env_name: Door, Lift"):
        check_env_name("Dor", ["Lift", "Door", "TwoArmLift"])
    with pytest.raises(ConfigError, match="'TwoArmLift' for one arm"):
        check_env_name("TwoArmLift", ["Door", "TwoArmLift"])


def test_a_task_fits() -> None:
    check_task_observables(TASK, 7, CAMERAS, WIDTHS)


@pytest.mark.parametrize(
    ("changes", "words"),
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
def test_what_does_not_fit_is_named(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_task_observables(dataclasses.replace(TASK, **changes), 7, CAMERAS, WIDTHS)


def test_another_number_of_actions_is_refused() -> None:
    with pytest.raises(ConfigError, match="actions of 6 values"):
        check_task_observables(TASK, 6, CAMERAS, WIDTHS)


def test_the_simulator_says_what_it_has() -> None:
    with pytest.raises(ConfigError, match="no environment 'Doors' for one arm, did you mean 'Door'.*NutAssemblyRound"):
        Simulator(dataclasses.replace(TASK, env_name="Doors"))
    with pytest.raises(ConfigError, match="Wipe takes actions of 6 values"):
        Simulator(dataclasses.replace(TASK, env_name="Wipe"))
    with pytest.raises(ConfigError, match="Lift has no observable 'door_pos'.*cube_pos 3"):
        Simulator(dataclasses.replace(TASK, env_name="Lift"))


def test_the_example_of_the_readme_fits() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    example = re.search(r"^\{\n  \"name\".*?^\}", text, re.DOTALL | re.MULTILINE)
    assert example
    Simulator(task_from_json(json.loads(example[0]))).close()


def test_a_built_in_environment_with_another_camera_and_less_sensors() -> None:
    task = dataclasses.replace(
        TASKS["lift"], name="lift_side", cameras={"sideview_image": "sideview"}, low_dim={"robot0_gripper_qpos": 2}
    )
    sim = Simulator(task)
    sim.reset(0)
    seen = sim.observe("image")
    assert {k: v.shape for k, v in seen.items()} == {"sideview_image": (84, 84, 3), "robot0_gripper_qpos": (2,)}
    usual = Simulator(TASKS["lift"])
    usual.reset(0)
    assert (sim.low_dim(["object"])["object"] == usual.low_dim(["object"])["object"]).all()
    assert (seen["sideview_image"] != usual.image("agentview_image")).mean() > 0.3
    usual.close()
    sim.close()
