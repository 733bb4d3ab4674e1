from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from conftest import DOOR

from ddp_cli.errors import ConfigError
from ddp_cli.tasks import (
    CAMERAS,
    PROPRIO,
    TASKS,
    Task,
    check_same_task,
    difference,
    get_task,
    read_task,
    task_from_file,
    task_from_json,
    task_name,
    task_of_env,
)

MINIMAL = {"name": "door", "env_name": "Door"}


def written(folder: Path, content: object) -> Path:
    path = folder / "task.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_built_in_tasks_are_what_stores_and_checkpoints_of_them_hold() -> None:
    assert {t.name: (t.env_name, t.object_dim, t.state_dim, t.horizon) for t in TASKS.values()} == {
        "lift": ("Lift", 10, 32, 400),
        "can": ("PickPlaceCan", 14, 71, 400),
        "square": ("NutAssemblySquare", 14, 45, 400),
    }
    for task in TASKS.values():
        assert task.to_json() == task.name
        assert list(task.images("image")) == ["agentview_image", "robot0_eye_in_hand_image"]
        assert list(task.vectors("state")) == ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
        assert task.vectors("image") == PROPRIO
        assert task.images("state") == {}


def test_a_minimal_file_has_the_usual_cameras_and_sensors(tmp_path: Path) -> None:
    task = task_from_file(written(tmp_path, MINIMAL))
    assert task == Task("door", "Door", CAMERAS, PROPRIO, {}, model_varies=True, horizon=400)
    assert "object" not in task.vectors("state")
    assert task.cameras is not CAMERAS  # whoever changes one must not change all


def test_what_is_kept_says_everything_and_reads_back_the_same_in_the_same_order() -> None:
    task = task_from_json(DOOR | {"low_dim": {"robot0_joint_pos": 7, "robot0_eef_pos": 3}, "model_varies": False})
    kept = json.loads(json.dumps(task.to_json()))
    assert sorted(kept) == ["cameras", "env_name", "horizon", "low_dim", "model_varies", "name", "object"]
    again = task_from_json(kept)
    assert again == task == pickle.loads(pickle.dumps(task))
    assert json.dumps(again.to_json()) == json.dumps(task.to_json())
    assert list(again.vectors("state").items()) == [("object", 7), ("robot0_joint_pos", 7), ("robot0_eef_pos", 3)]
    assert hash(again) == hash(task)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nme": "x"}, ["unknown key 'nme', did you mean 'name'?", "env_name"]),
        ({"camera": {}}, ["'camera', did you mean 'cameras'"]),
        ({"state_dim": 3}, ["unknown key 'state_dim'"]),
        ({"name": None}, ["name is None", '"env_name": "Door"']),
        ({"name": "../door"}, ["'../door'", "letters, digits"]),
        ({"name": "-x"}, ["'-x'"]),
        ({"name": "a.json"}, ["'a.json'"]),
        ({"name": "a" * 65}, ["at most 64"]),
        ({"name": "lift"}, ["'lift' is the name of a built-in task", "another name"]),
        ({"name": "Lift"}, ["'Lift' is the name of a built-in task"]),
        ({"env_name": 3}, ["env_name is 3"]),
        ({"env_name": ""}, ["env_name is ''"]),
        ({"cameras": {}}, ["cameras is {}", "agentview_image"]),
        ({"cameras": ["frontview"]}, ["cameras is ['frontview']"]),
        ({"cameras": {"front": "frontview"}}, ["key 'front'", "_image"]),
        ({"cameras": {"a.b_image": "frontview"}}, ["key 'a.b_image'"]),
        ({"cameras": {"a_image": 3}}, ["cameras.a_image is 3"]),
        ({"low_dim": ["robot0_eef_pos"]}, ["low_dim is ['robot0_eef_pos']", "widths"]),
        ({"low_dim": {"robot0_eef_pos": 0}}, ["low_dim.robot0_eef_pos is 0", "width"]),
        ({"low_dim": {"robot0_eef_pos": "3"}}, ["low_dim.robot0_eef_pos is '3'"]),
        ({"low_dim": {"robot0_eef_pos": True}}, ["low_dim.robot0_eef_pos is True"]),
        ({"low_dim": {"robot0_eef_pos": 3.0}}, ["low_dim.robot0_eef_pos is 3.0"]),
        ({"low_dim": {"robot0_eef_pos": 10**9}}, ["1 to 1000"]),
        ({"low_dim": {"agentview_image": 3}}, ["low_dim has the key 'agentview_image'"]),
        ({"low_dim": {"object": 10}}, ["'object'", "meaning of its own"]),
        ({"low_dim": {"action": 7}}, ["'action'", "meaning of its own"]),
        ({"object": {"door.pos": 3}}, ["object has the key 'door.pos'"]),
        ({"model_varies": "no"}, ["model_varies is 'no'", "true or false"]),
        ({"horizon": 0}, ["horizon is 0", "1 to"]),
        ({"horizon": 20.0}, ["horizon is 20.0"]),
    ],
)
def test_a_fault_of_the_file_is_named_with_what_would_be_valid(tmp_path: Path, changes: dict, words: list[str]) -> None:
    path = written(tmp_path, MINIMAL | changes)
    with pytest.raises(ConfigError) as e:
        task_from_file(path)
    assert str(e.value).startswith(f"'{path}': ")
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize("key", ["name", "env_name"])
def test_a_missing_name_is_said(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, {k: v for k, v in MINIMAL.items() if k != key})
    with pytest.raises(ConfigError, match=f"no '{key}'"):
        task_from_file(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ("[1]", "no JSON object"), ('"lift"', "no JSON object"), ("\x00", "JSON")],
)
def test_what_is_no_description_is_refused(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        task_from_file(written(tmp_path, content))


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file.*\"env_name\": \"Door\""):
        task_from_file(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="directory"):
        task_from_file(tmp_path)


def test_task_is_a_name_or_a_file(tmp_path: Path) -> None:
    path = str(written(tmp_path, MINIMAL))
    assert read_task("lift") is get_task("lift")
    assert read_task(path).env_name == "Door"
    assert (task_name(path), task_name("door"), task_name("lift")) == ("door", "door", "lift")
    with pytest.raises(ConfigError, match="did you mean 'square'.*lift, can, square.*--task file.json"):
        read_task("sqare")


def test_an_unknown_environment_says_how_to_describe_it() -> None:
    assert task_of_env("Lift").name == "lift"
    with pytest.raises(ConfigError, match=r"'Door'.*PickPlaceCan \(can\).*--task file.json"):
        task_of_env("Door")


def test_differences_are_named() -> None:
    task = task_from_json(DOOR)
    assert difference(task, task_from_json(DOOR)) == ""
    other = dataclasses.replace(
        task, horizon=9, cameras={"frontview_image": "sideview"}, low_dim={"robot0_joint_vel": 7}
    )
    said = difference(task, other)
    assert 'cameras.frontview_image "frontview" instead of "sideview"' in said
    assert "low_dim.robot0_eef_pos 3 instead of absent" in said
    assert "horizon 12 instead of 9" in said
    assert "env_name" not in said
    assert "horizon" not in difference(task, other, but=("horizon",))


def test_long_differences_are_cut() -> None:
    assert difference(task_from_json(DOOR), get_task("lift")).startswith('name "door" instead of "lift", env_name ')
    assert difference(task_from_json(DOOR), get_task("lift")).endswith(" more")


def test_the_order_matters_only_inside_object() -> None:
    task = task_from_json(DOOR)
    turned = {key: dict(reversed(getattr(task, key).items())) for key in ("low_dim", "object")}
    assert difference(task, dataclasses.replace(task, low_dim=turned["low_dim"])) == ""
    assert "object" in difference(task, dataclasses.replace(task, object=turned["object"]))


def test_a_file_that_describes_another_task_is_refused(tmp_path: Path) -> None:
    path = str(written(tmp_path, DOOR | {"horizon": 99}))
    check_same_task(task_from_json(DOOR), None, tmp_path)
    check_same_task(task_from_json(DOOR), "door", tmp_path)
    check_same_task(task_from_json(DOOR | {"horizon": 99}), path, tmp_path)
    with pytest.raises(ConfigError, match="horizon 12 instead of 99"):
        check_same_task(task_from_json(DOOR), path, tmp_path)
