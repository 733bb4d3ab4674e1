from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import DOOR

from ddp_cli.errors import ConfigError
from ddp_cli.task_file import check_same_task, read_task, task_from_file, task_from_json, task_name
from ddp_cli.tasks import CAMERAS, get_task, proprioception, robosuite_task

MINIMAL = {"name": "door", "env_name": "Door"}


def write_task(folder: Path, content: object) -> Path:
    path = folder / "task.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_minimal_file_gets_the_default_cameras_and_sensors(tmp_path: Path) -> None:
    task = task_from_file(write_task(tmp_path, MINIMAL))
    assert task == robosuite_task("door", "Door", cameras=CAMERAS, low_dim=proprioception(["Panda"]))
    assert (task.robosuite.model_varies, task.horizon, task.schema.rate) == (True, 400, 20.0)
    assert "object" not in task.vectors("state")


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"nme": "x"}, ["unknown key 'nme', did you mean 'name'?", "env_name"]),
        ({"camera": {}}, ["'camera', did you mean 'cameras'"]),
        ({"state_dim": 3}, ["unknown key 'state_dim'"]),
        ({"self": 3}, ["unknown key 'self'"]),
        ({"name": None}, ["name = None", '"env_name": "Door"']),
        ({"name": "../door"}, ["name = '../door'", "letters, digits"]),
        ({"name": "-x"}, ["name = '-x'"]),
        ({"name": "a.json"}, ["name = 'a.json'"]),
        ({"name": "a" * 65}, ["at most 64"]),
        ({"name": "lift"}, ["'lift' is the name of a built-in task", "another name"]),
        ({"name": "Lift"}, ["'Lift' is the name of a built-in task"]),
        ({"env_name": 3}, ["env_name = 3"]),
        ({"env_name": ""}, ["env_name = ''"]),
        ({"cameras": {}}, ["cameras = {}", "agentview_image"]),
        ({"cameras": ["frontview"]}, ["cameras = ['frontview']", "agentview_image"]),
        ({"cameras": {"front": "frontview"}}, ["cameras: invalid key 'front'", "_image"]),
        ({"cameras": {"a.b_image": "frontview"}}, ["cameras: invalid key 'a.b_image'"]),
        ({"cameras": {"a_image": 3}}, ["cameras.a_image = 3"]),
        ({"low_dim": ["robot0_eef_pos"]}, ["low_dim = ['robot0_eef_pos']", "widths"]),
        ({"low_dim": {"robot0_eef_pos": 0}}, ["low_dim.robot0_eef_pos = 0", "width"]),
        ({"low_dim": {"robot0_eef_pos": "3"}}, ["low_dim.robot0_eef_pos = '3'"]),
        ({"low_dim": {"robot0_eef_pos": True}}, ["low_dim.robot0_eef_pos = True"]),
        ({"low_dim": {"robot0_eef_pos": 3.0}}, ["low_dim.robot0_eef_pos = 3.0"]),
        ({"low_dim": {"robot0_eef_pos": 10**9}}, ["1 to 1000"]),
        ({"low_dim": {"agentview_image": 3}}, ["low_dim: invalid key 'agentview_image'"]),
        ({"low_dim": {"object": 10}}, ["low_dim: invalid key 'object'", "a store uses this key itself"]),
        ({"low_dim": {"action": 7}}, ["low_dim: invalid key 'action'", "a store uses this key itself"]),
        ({"object": {"door.pos": 3}}, ["object: invalid key 'door.pos'"]),
        ({"model_varies": "no"}, ["model_varies = 'no'", "true or false"]),
        ({"horizon": 0}, ["horizon = 0", "1 to"]),
        ({"horizon": 20.0}, ["horizon = 20.0"]),
    ],
)
def test_faults_are_named_with_what_would_be_valid(tmp_path: Path, changes: dict, fragments: list[str]) -> None:
    path = write_task(tmp_path, MINIMAL | changes)
    with pytest.raises(ConfigError) as e:
        task_from_file(path)
    assert str(e.value).startswith(f"'{path}': ")
    assert "\n" not in str(e.value)
    for fragment in fragments:
        assert fragment in str(e.value)


@pytest.mark.parametrize("key", ["name", "env_name"])
def test_missing_key_is_named(tmp_path: Path, key: str) -> None:
    path = write_task(tmp_path, {k: v for k, v in MINIMAL.items() if k != key})
    with pytest.raises(ConfigError, match=f'the key \'{key}\' is missing.*"env_name": "Door"'):
        task_from_file(path)


def test_misspelt_required_key_is_reported_as_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'nme', did you mean 'name'"):
        task_from_file(write_task(tmp_path, {"nme": "door", "env_name": "Door"}))


@pytest.mark.parametrize(
    ("content", "fragment"),
    [("{", "is not valid JSON"), ("[1]", "a JSON object"), ('"lift"', "a JSON object"), ("\x00", "JSON")],
)
def test_files_without_a_description_are_rejected(tmp_path: Path, content: str, fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment):
        task_from_file(write_task(tmp_path, content))


def test_missing_file_and_folder_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file.*\"env_name\": \"Door\""):
        task_from_file(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="directory"):
        task_from_file(tmp_path)


def test_task_option_is_a_name_or_a_file(tmp_path: Path) -> None:
    path = str(write_task(tmp_path, MINIMAL))
    assert read_task("lift") is get_task("lift")
    assert read_task(path).robosuite.env_name == "Door"
    assert (task_name(path), task_name("door"), task_name("lift")) == ("door", "door", "lift")
    with pytest.raises(ConfigError, match="did you mean 'square'.*lift, can, square.*--task file.json"):
        read_task("sqare")


def test_file_with_another_task_is_rejected(tmp_path: Path) -> None:
    path = str(write_task(tmp_path, DOOR | {"horizon": 99}))
    check_same_task(task_from_json(DOOR), None, tmp_path)
    check_same_task(task_from_json(DOOR), "door", tmp_path)
    check_same_task(task_from_json(DOOR | {"horizon": 99}), path, tmp_path)
    with pytest.raises(ConfigError, match="horizon 12 instead of 99"):
        check_same_task(task_from_json(DOOR), path, tmp_path)
