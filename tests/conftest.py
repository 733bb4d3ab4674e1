"""Small real fixtures that many tests share: two demonstrations of lift, their store, an untrained policy, its export;
two recordings of a task described by a file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes share the cores: threads that wait for each other would slow all of them down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import zarr
from typer.testing import CliRunner, Result

from ddp_cli.cli import app
from ddp_cli.core.checkpoint import load_policy
from ddp_cli.data.collection import collect
from ddp_cli.data.conversion import convert
from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_writer import DemoWriter
from ddp_cli.data.lerobot_writer import write_lerobot
from ddp_cli.data.store import Store
from ddp_cli.deploy.example_observations import observations_from_store
from ddp_cli.deploy.export import ExportOptions, export_policy
from ddp_cli.deploy.runtime import Policy
from ddp_cli.inference.onnx_policy import obs_keys
from ddp_cli.presets import train_config
from ddp_cli.sim.environment import env_args
from ddp_cli.sim.simulator import Simulator
from ddp_cli.task_file import task_from_file
from ddp_cli.tasks import Task, get_task
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.run import create_run, run_training

TINY = {
    "n_layer": 1,
    "n_emb": 16,
    "n_head": 2,
    "batch_size": 4,
    "noise_samples": 2,
    "num_inference_steps": 2,
    "fusion": 0,
    "prediction_type": "epsilon",
}


SAMPLE_TASKS = ("lift", "can", "square")
"""Tasks with demonstrations in sample_data."""

DOOR: dict[str, Any] = {
    "name": "door",
    "env_name": "Door",
    "cameras": {"frontview_image": "frontview"},
    "low_dim": {"robot0_eef_pos": 3, "robot0_joint_vel": 7},
    "object": {"door_pos": 3, "handle_pos": 3, "hinge_qpos": 1},
    "horizon": 12,
}
"""A task that is not built in: another environment, one other camera, other observations, a scalar among them."""


def tiny_config(**changes: object) -> TrainConfig:
    settings = {**TINY, "steps": 4, **changes}
    obs = str(settings.pop("obs", "image"))
    return train_config("lift", obs, "laptop", None, settings)


@pytest.fixture(autouse=True)
def _all_threads() -> Iterator[None]:
    """Agents on a CPU use one thread from then on; sums, and so training, depend on their number."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def lift_demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "lift.hdf5"
    collect(get_task("lift"), 2, path, 1000, 1, lambda *_: None)
    return path


@pytest.fixture(scope="session")
def lift_zarr(lift_demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "lift.zarr"
    convert(lift_demos, path, 1, lambda *_: None)
    return path


@pytest.fixture(scope="session")
def lift_store(lift_zarr: Path) -> Store:
    return Store(lift_zarr)


@pytest.fixture(scope="session")
def written_lerobot(lift_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lerobot") / "lift"
    write_lerobot(lift_store, path, lambda *_: None)
    return path


@pytest.fixture
def lerobot(written_lerobot: Path, tmp_path: Path) -> Path:
    """A copy of the LeRobot dataset of `lift_store` that tests may change."""
    return Path(shutil.copytree(written_lerobot, tmp_path / "lift"))


@pytest.fixture(scope="session")
def trained(lift_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one run of four steps in it."""
    runs = tmp_path_factory.mktemp("runs")
    run = create_run(runs / "lift" / "tiny", tiny_config(), lift_store, torch.device("cpu"), lambda _: None)
    run_training(run, Callbacks())
    return runs


@pytest.fixture(scope="session")
def trained_reach_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on a recording without a simulator: images and positions, and goals as actions."""
    folder = tmp_path_factory.mktemp("reach")
    rng, ends = np.random.default_rng(0), np.array([20, 50, 70])
    root = zarr.open_group(folder / "reach.zarr", mode="w", zarr_format=2)
    for key, value in {
        "img": rng.integers(0, 255, (ends[-1], 16, 20, 3), dtype=np.uint8),
        "pos": rng.uniform(-1, 1, (ends[-1], 2)).astype(np.float32),
        "action": rng.uniform(-1, 1, (ends[-1], 2)).astype(np.float32),
    }.items():
        root.create_array(f"data/{key}", data=value)
    root.create_array("meta/episode_ends", data=ends)
    ok(ddp("convert", folder / "reach.zarr", "--rate", 10, "--out", folder / "store.zarr"))
    settings = [f"--set={key}={value}" for key, value in {**TINY, "crop_ratio": 1.0, "encoder": "small"}.items()]
    command = ("train", "--task", "reach", "--data", folder / "store.zarr", "--steps", 2, "--preset", "laptop")
    ok(ddp(*command, *settings, "--runs", folder / "runs", "--name", "r"))
    return folder / "runs" / "reach" / "r"


@pytest.fixture
def reach_run(trained_reach_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `trained_reach_run` without the evaluations of other tests."""
    copy = tmp_path_factory.mktemp("runs") / "reach" / "r"
    return shutil.copytree(trained_reach_run, copy, symlinks=True)


class Recorded(NamedTuple):
    """Demos of a described task: its file, the recording, and the observations before each action."""

    file: Path
    task: Task
    demos: Path
    observations: list[dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two demos of random actions, recorded as robosuite's own tools do: with the simulator's XML."""
    folder = tmp_path_factory.mktemp("door")
    (folder / "door.json").write_text(json.dumps(DOOR))
    task = task_from_file(folder / "door.json")
    sim, observations = Simulator(task), []
    with DemoWriter(folder / "door.hdf5", env_args(task), {}) as writer:
        for seed in (1, 2):
            sim.reset(seed)
            xml, states = sim.env.sim.model.get_xml(), []
            actions = np.random.default_rng(seed).uniform(-1, 1, (10, 7))
            for action in actions:
                states.append(sim.state())
                observations.append(sim.observe("image") | sim.low_dim())
                sim.step(action)
            writer.append(Demo(np.stack(states), actions, xml, seed))
        writer.finish()
    sim.close()
    return Recorded(folder / "door.json", task, folder / "door.hdf5", observations)


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be damaged."""
    return Path(shutil.copytree((trained / "lift/tiny/checkpoints/last").resolve(), tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def policy_folder(trained: Path, lift_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy, exported as ONNX."""
    policy, meta = load_policy(trained / "lift/tiny/checkpoints/last")
    out = tmp_path_factory.mktemp("exported") / "policy"
    export_policy(policy, meta, ExportOptions(), out, lambda: observations_from_store(obs_keys(policy), lift_store, 2))
    return out


def random_observation(policy: Policy, seed: int = 0) -> dict[str, np.ndarray]:
    """A random observation of one step, as an exported policy takes it."""
    rng = np.random.default_rng(seed)
    return {
        key: rng.integers(0, 256, obs["shape"], np.uint8)
        if obs["dtype"] == "uint8"
        else rng.normal(size=obs["shape"]).astype(np.float32)
        for key, obs in policy.obs.items()
    }


def read_video(path: Path) -> np.ndarray:
    """All frames of a video (n, H, W, 3)."""
    return np.stack([np.asarray(frame)[..., :3] for frame in imageio.mimread(path, memtest=False)])


def ddp(*args: object) -> Result:
    """Runs a command as the shell would."""
    return CliRunner().invoke(app, [str(a) for a in args])


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.stderr or result.output
    return result


def ok_json(*args: object) -> dict:
    return json.loads(ok(ddp(*args, "--json")).stdout)


def misused(result: Result) -> str:
    """The one line that wrong usage prints."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def refused(result: Result) -> str:
    """The one line that a user's error prints."""
    assert result.exit_code == 1, (result.exit_code, result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]
