"""Recordings of other robots, controllers and rates, one arm and two: the environment comes from the recording."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import TINY, ddp, ok, ok_json, read_video, refused

from ddp_cli.commands.doctor_task_checks import diagnose_task
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError, DataError, SimulatorError
from ddp_cli.robots import Robosuite
from ddp_cli.sim.discovery import describe_environment
from ddp_cli.sim.environment import env_args
from ddp_cli.sim.simulator import Simulator
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import RECORDED, TASKS, Task, get_task

pytestmark = pytest.mark.slow


def record(task: Task, path: Path, n_demos: int = 2, n_steps: int = 12, **env_kwargs: Any) -> Path:
    """A file in robomimic's layout: random actions in `task`, whose description in the file has `env_kwargs` added."""
    sim, rng = Simulator(task), np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        args = env_args(task)
        args["env_kwargs"] |= env_kwargs
        file.create_group("data").attrs["env_args"] = json.dumps(args)
        for i in range(n_demos):
            sim.reset(i)
            demo = file.create_group(f"data/demo_{i}")
            demo.attrs["model_file"] = sim.model_xml()
            actions, states = rng.uniform(-1, 1, (n_steps, task.schema.action_dim)), []
            for action in actions:
                states.append(sim.state())
                sim.step(action)
            demo["states"], demo["actions"] = np.array(states), actions
    sim.close()
    return path


def described(rate: float = 20.0, **simulator: Any) -> Task:
    task, notes = describe_environment("described", Robosuite(cameras={}, **simulator), rate, 30, {})
    assert notes == []
    return task


def parts_of(task: Task) -> list[tuple[str, int]]:
    return [(part.name, part.width) for part in task.schema.action]


CONTROLLERS = {
    "JOINT_TORQUE": [("joint_torque", 7), ("gripper", 1)],
    "JOINT_POSITION": [("joint_position", 7), ("gripper", 1)],
    "OSC_POSITION": [("position", 3), ("gripper", 1)],
    "IK_POSE": [("position", 3), ("rotation", 3), ("gripper", 1)],
}


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_a_recording_with_another_controller_and_rate_is_replayed_with_it(kind: str, tmp_path: Path) -> None:
    task = described(10.0, env_name="Lift", controllers=({"right": {"type": kind}},))
    assert parts_of(task) == CONTROLLERS[kind]
    assert task.conventions == (RECORDED,)
    path = record(task, tmp_path / "demos.hdf5")
    with DemoFile(path) as demos:
        assert demos.task.name == f"lift_{kind.lower()}"
        assert demos.task.schema.action == task.schema.action
        assert demos.task.schema.rate == 10.0
    result = ok(ddp("convert", path, "--obs", "state", "--out", tmp_path / "s.zarr", "--workers", 1))
    assert "check passed" in result.stdout
    store = Store(tmp_path / "s.zarr")
    assert store.attrs["action"] == {"convention": RECORDED, "dim": task.schema.action_dim}
    assert "no absolute form" in refused(
        ddp("convert", path, "--obs", "state", "--actions", "absolute", "--out", tmp_path / "a.zarr", "--workers", 1)
    )


def test_what_this_robosuite_cannot_make_is_refused_with_its_reason() -> None:
    """The constructor of the controller of joint velocities fails in robosuite 1.5.2."""
    with pytest.raises(SimulatorError, match="cannot create Lift with .*AttributeError, .*torque"):
        described(env_name="Lift", controllers=({"right": {"type": "JOINT_VELOCITY"}},))


def test_other_gains_are_used_and_checked(tmp_path: Path) -> None:
    task = described(env_name="Lift", controllers=({"right": {"kp": 400}},))
    assert task.conventions == ("delta", "absolute")
    path = record(task, tmp_path / "demos.hdf5")
    convert = ("convert", path, "--obs", "state", "--out", tmp_path / "s.zarr", "--workers", 1, "--json")
    assert ok_json(*convert)["check"]["result"] == "passed"
    assert Store(tmp_path / "s.zarr").task.robosuite.controllers == ({"right": {"kp": 400}},)
    with h5py.File(path, "r+") as file:  # as if it had been recorded with the default
        file["data"].attrs["env_args"] = json.dumps(env_args(get_task("lift")))
    assert ok_json(*convert, "--overwrite")["check"]["result"] == "failed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control_freq": 10}, "recorded with 10 Hz, but the task 'lift' has 20 Hz"),
        (
            {"controller_configs": {"type": "OSC_POSE", "kp": 50}},
            "controllers .*50.*, but the task 'lift' has the default",
        ),
    ],
)
def test_a_task_that_is_named_must_have_the_recorded_rate_and_controllers(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = record(get_task("lift"), tmp_path / "demos.hdf5", 1, 3, **changes)
    with pytest.raises(DataError, match=message):
        DemoFile(path, get_task("lift"))


def test_arguments_that_change_nothing_do_not_make_another_task(tmp_path: Path) -> None:
    """One that is the default, one that this robosuite does not know."""
    path = record(get_task("lift"), tmp_path / "demos.hdf5", 1, 3, table_full_size=[0.8, 0.8, 0.05], magnet=3)
    with DemoFile(path) as demos:
        assert demos.task is get_task("lift")
        assert "no argument magnet" in demos.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robots": ["NotARobot"]}, "cannot create Lift .*NotARobot"),
        ({"table_full_size": []}, "cannot create Lift .*IndexError"),
        ({"control_freq": 1e-300}, "control rate is 1e-300, expected 1 to 1000 Hz"),
        ({"controller_configs": {"type": "OSC_POSE", "output_max": {"a": 1}}}, "output_max is .*expected a number"),
        ({"controller_configs": {"type": []}}, "controller is .*expected one of OSC_POSE"),
        ({"controller_configs": {"type": "WHOLE_BODY_IK", "body_parts": {"right": {}}}}, "the composite controller is"),
    ],
)
def test_malformed_descriptions_are_refused_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = record(get_task("lift"), tmp_path / "demos.hdf5", 1, 3, **changes)
    for command in ("inspect", "convert"):
        result = ddp(command, path)
        assert re.search(message, " ".join((result.stdout + result.stderr).split())), result.stderr
        assert result.exit_code == (1 if command == "convert" else 0)


def test_arguments_of_the_simulator_itself_are_no_arguments_of_a_task() -> None:
    with pytest.raises(ConfigError, match="env_kwargs has 'control_freq', which is not an argument of a task"):
        Robosuite(env_name="Lift", cameras={}, env_kwargs={"control_freq": 10})


def test_doctor_says_that_a_camera_is_not_culled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Culling that hides what can be seen: the simulator renders everything then, and doctor does not call it exact."""
    task = task_from_json({"name": "my_lift", "env_name": "Lift"})
    monkeypatch.setattr("ddp_cli.sim.renderer.potentially_visible", lambda model, *_, **__: np.zeros(model.ngeom, bool))
    culling = next(check for check in diagnose_task(task) if check.name == "culling")
    assert culling.detail.startswith("not used for agentview_image")


def test_one_robot_with_two_arms() -> None:
    task = described(env_name="TwoArmLift", robots=("Baxter",))
    names = [f"{arm}_{kind}" for arm in ("right", "left") for kind in ("position", "rotation")]
    assert [name for name, _ in parts_of(task)] == [*names, "right_gripper", "left_gripper"]
    assert list(task.low_dim)[:2] == ["robot0_right_eef_pos", "robot0_right_eef_quat"]
    assert [part.name for part in task.action_parts("absolute")] == [part.name for part in task.schema.action]
    sim = Simulator(task, actions="absolute")
    sim.reset(0)  # verifies that goals are reached
    assert sim.n_arms == 2
    sim.close()


def test_arguments_that_this_robosuite_does_not_know_are_named() -> None:
    simulator = Robosuite(env_name="Lift", cameras={}, env_kwargs={"table_friction": [2.0, 5e-3, 1e-4], "magnet": 3})
    task, [note] = describe_environment("described", simulator, 20.0, 30, {})
    assert note.endswith("has no argument magnet, which was 3")
    assert task.robosuite.env_kwargs == {"table_friction": [2.0, 5e-3, 1e-4]}


def test_a_gripper_without_fingers_has_no_part_and_no_observable() -> None:
    task, _ = describe_environment("wipe", Robosuite(env_name="Wipe", cameras={}), 20.0, 30, {})
    assert parts_of(task) == [("position", 3), ("rotation", 3)]
    assert "robot0_gripper_qpos" not in task.low_dim


@pytest.mark.parametrize("actions", ["delta", "absolute"])
def test_two_arms_from_a_recording_to_an_evaluation_and_an_export(actions: str, tmp_path: Path) -> None:
    """With short episodes, and so as a task from a file: the simulator compares its shortcuts when it starts."""
    task = dataclasses.replace(TASKS["transport"], name="transport_short", horizon=12)
    path = record(TASKS["transport"], tmp_path / "demos.hdf5")
    with DemoFile(path) as demos:
        assert demos.task is TASKS["transport"]
    (tmp_path / "task.json").write_text(json.dumps(task.to_json()))
    convert = ("convert", path, "--task", tmp_path / "task.json", "--actions", actions, "--out", tmp_path / "s.zarr")
    assert ok_json(*convert, "--workers", 1, "--json")["check"]["result"] == "passed"
    store = Store(tmp_path / "s.zarr")
    assert store.read("action").shape[1] == {"delta": 14, "absolute": 20}[actions]
    assert store.image_keys == list(task.schema.cameras)
    settings = [f"--set={key}={value}" for key, value in {**TINY, "encoder": "small"}.items()]
    train = ("train", "--data", tmp_path / "s.zarr", "--steps", 1, "--preset", "laptop", *settings)
    ok(ddp(*train, "--runs", tmp_path, "--name", "r"))
    run = tmp_path / "transport_short" / "r"
    assert ok_json("eval", run, "-n", 1, "--workers", 1)["episodes"][0]["steps"] == 12
    ok(ddp("rollout", run, "--video", tmp_path / "a.mp4", "--attempts", 1))
    assert read_video(tmp_path / "a.mp4").shape[1:] == (1024, 1536, 3)  # four cameras in rows of three
    ok(ddp("export", run, "--out", tmp_path / "exported"))


def test_values_of_two_arms_without_states_are_accepted(tmp_path: Path) -> None:
    """Their bases are turned, and each has a gripper: the checks of one arm do not apply."""
    path = record(TASKS["two_arm_lift"], tmp_path / "demos.hdf5", 2, 60)
    ok(ddp("convert", path, "--obs", "state", "--out", tmp_path / "s.zarr", "--workers", 1))
    ok(ddp("convert", tmp_path / "s.zarr", "--to", "robomimic", "--out", tmp_path / "copy.hdf5"))
    copy = ("convert", tmp_path / "copy.hdf5", "--obs", "state", "--out", tmp_path / "copy.zarr", "--json")
    assert ok_json(*copy)["check"]["result"] == "not verified"
    np.testing.assert_allclose(
        Store(tmp_path / "copy.zarr").read("action"), Store(tmp_path / "s.zarr").read("action"), atol=1e-6
    )


def test_two_arms_survive_a_lerobot_dataset(tmp_path: Path) -> None:
    path = record(TASKS["two_arm_lift"], tmp_path / "demos.hdf5", 2, 12)
    ok(ddp("convert", path, "--obs", "state", "--out", tmp_path / "s.zarr", "--workers", 1))
    ok(ddp("convert", tmp_path / "s.zarr", "--to", "lerobot", "--out", tmp_path / "dataset"))
    ok(ddp("convert", tmp_path / "dataset", "--out", tmp_path / "copy.zarr"))
    store, copy = Store(tmp_path / "s.zarr"), Store(tmp_path / "copy.zarr")
    assert copy.task is store.task
    for key in (*store.task.vectors("state"), "action"):
        np.testing.assert_array_equal(copy.read(key), store.read(key))
