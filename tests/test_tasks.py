from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
from conftest import DOOR, SAMPLE_TASKS
from pydantic import ValidationError

from ddp_cli.errors import UnknownNameError
from ddp_cli.task_difference import describe_difference
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import TASKS, check_obs, get_task, proprioception


def test_built_in_tasks_match_their_stores_and_checkpoints() -> None:
    assert {t.name: (t.robosuite.env_name, t.object_dim, t.state_dim, t.horizon) for t in TASKS.values()} == {
        "lift": ("Lift", 10, 32, 400),
        "can": ("PickPlaceCan", 14, 71, 400),
        "square": ("NutAssemblySquare", 14, 45, 400),
        "transport": ("TwoArmTransport", 41, 115, 700),
        "tool_hang": ("ToolHang", 44, 58, 700),
        "two_arm_lift": ("TwoArmLift", 19, 50, 400),
        "stack": ("Stack", 23, 45, 400),
        "door": ("Door", 14, 23, 400),
    }
    assert all(task.to_json() == task.name for task in TASKS.values())
    for task in (TASKS[name] for name in SAMPLE_TASKS):
        assert list(task.images("image")) == ["agentview_image", "robot0_eye_in_hand_image"]
        assert list(task.vectors("state")) == ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
        assert task.vectors("image") == proprioception(["Panda"])
        assert task.images("state") == {}


def test_json_and_pickle_round_trips_keep_everything_in_order() -> None:
    task = task_from_json(DOOR | {"low_dim": {"robot0_joint_pos": 7, "robot0_eef_pos": 3}, "model_varies": False})
    stored = json.loads(json.dumps(task.to_json()))
    assert sorted(stored) == ["horizon", "name", "schema", "simulator"]
    restored = task_from_json(stored)
    assert restored == task == pickle.loads(pickle.dumps(task))
    assert json.dumps(restored.to_json()) == json.dumps(task.to_json())
    assert list(restored.vectors("state").items()) == [("object", 7), ("robot0_joint_pos", 7), ("robot0_eef_pos", 3)]
    assert hash(restored) == hash(task)
    assert restored != dataclasses.replace(task, horizon=1)


def test_tasks_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_task("lift").horizon = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        get_task("lift").schema.rate = 3.0


def test_unknown_observations_list_the_valid_ones() -> None:
    check_obs("state")
    with pytest.raises(UnknownNameError, match="unknown observations 'stat', did you mean 'state'.*image, state"):
        check_obs("stat")


def test_differences_are_named() -> None:
    task = task_from_json(DOOR)
    assert describe_difference(task, task_from_json(DOOR)) == ""
    changes = {"horizon": 9, "cameras": {"frontview_image": "sideview"}, "low_dim": {"robot0_joint_vel": 7}}
    other = task_from_json(DOOR | changes)
    differences = describe_difference(task, other)
    assert 'cameras.frontview_image "frontview" instead of "sideview"' in differences
    assert "horizon 12 instead of 9" in differences
    assert "vectors.robot0_eef_pos 3 instead of absent" in differences
    assert "more" not in differences
    assert "env_name" not in differences
    assert "horizon" not in describe_difference(task, other, ignore=("horizon",))


def test_many_differences_are_summarized() -> None:
    differences = describe_difference(task_from_json(DOOR), get_task("lift"))
    assert differences.startswith('name "door" instead of "lift", env_name ')
    assert differences.endswith(" more")


def test_order_matters_only_inside_object() -> None:
    task = task_from_json(DOOR)
    low_dim, parts = (dict(reversed(DOOR[key].items())) for key in ("low_dim", "object"))
    assert describe_difference(task, task_from_json(DOOR | {"low_dim": low_dim})) == ""
    assert "object" in describe_difference(task, task_from_json(DOOR | {"object": parts}))
