"""Built-in tasks with other arms than the Panda."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.sim.scripted_policies import check_scripted_policy
from ddp_cli.sim.simulator import Simulator
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import ROBOTS, TASKS, get_task, with_robot

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_robot_has_the_declared_observations_and_exact_states(robot: str) -> None:
    """The observations are checked when the simulator is made. Fast steps equal those of robosuite, and a reset those
    of a new simulator, bit for bit.
    """
    task = with_robot(get_task("can"), robot)
    sims = [Simulator(task), Simulator(task)]
    from ddp_cli.sim.stepping import supports_fast_stepping  # imports robosuite, for which a GL backend is chosen first

    assert supports_fast_stepping(sims[0].env)
    sims[1]._make_step_fn = lambda: sims[1].env.step
    rng = np.random.default_rng(0)
    sims[0].reset(5)
    for sim in sims:
        sim.reset(7)
    for action in rng.uniform(-1, 1, (25, 7)):
        for sim in sims:
            sim.step(action)
        np.testing.assert_array_equal(sims[0].state(), sims[1].state())
    for sim in sims:
        sim.close()


def test_a_robot_makes_a_task_of_its_own() -> None:
    task = with_robot(get_task("square"), "UR5e")
    assert (task.name, task.is_built_in, task.is_variant) == ("square_ur5e", False, True)
    assert task.schema.vectors["robot0_gripper_qpos"].width == 6
    assert task_from_json(task.to_json()) == task
    assert with_robot(get_task("square"), "Panda") is get_task("square")
    assert all(task.is_variant for task in TASKS.values())
    panda = task_from_json({"name": "other", "env_name": "Lift"})
    assert "robot" not in panda.to_json()["simulator"]  # type: ignore[index]
    with pytest.raises(UnknownNameError, match="unknown robot 'panda'"):
        with_robot(get_task("lift"), "panda")
    with pytest.raises(ConfigError, match="robot"):
        task_from_json({"name": "other", "env_name": "Lift", "robot": "Baxter"})
    with pytest.raises(ConfigError, match="no scripted policy for the robot Jaco, only for Panda, IIWA"):
        check_scripted_policy(with_robot(get_task("lift"), "Jaco"))


def run_ddp(folder: Path, *args: object, code: int = 0) -> str:
    """The output of a command in a process of its own, in which nothing else is rendered."""
    command = [sys.executable, "-m", "ddp_cli", *map(str, args)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_from_demonstrations_of_another_robot_to_an_evaluation(tmp_path: Path) -> None:
    assert "2 demonstrations of lift_iiwa" in run_ddp(tmp_path, "collect", "--task", "lift", "--robot", "IIWA", "-n", 2)
    with DemoFile(tmp_path / "demos.hdf5") as demos:
        assert demos.task == with_robot(get_task("lift"), "IIWA")
    refusal = run_ddp(tmp_path, "convert", "demos.hdf5", "--task", "lift", code=1)
    assert "recorded with IIWA, but the task 'lift' has Panda" in refusal
    assert "check passed" in run_ddp(tmp_path, "convert", "demos.hdf5")
    store = Store(tmp_path / "data/lift_iiwa.zarr")
    assert store.task == with_robot(get_task("lift"), "IIWA")
    assert store.read("robot0_gripper_qpos").shape[1] == 6
    assert store.read("agentview_image").std() > 10
    settings = [f"--set={key}={value}" for key, value in {**TINY, "encoder": "small"}.items()]
    run_ddp(tmp_path, "train", "--task", "lift_iiwa", "--steps", 1, "--preset", "laptop", *settings)
    assert "0 of 1 episodes" in run_ddp(tmp_path, "eval", "--task", "lift_iiwa", "-n", 1, "--workers", 1)
