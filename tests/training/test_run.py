from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOOR, TINY, tiny_config
from training.run_helpers import create, release, resume

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.presets import train_config
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import get_task


def test_a_run_starts_with_the_weights_of_another_policy(lift_store: Store, tmp_path: Path, trained: Path) -> None:
    checkpoint = (trained / "lift/tiny/checkpoints/best").resolve()
    run = create(tmp_path / "run", tiny_config(lr=1e-9), lift_store, init_from=checkpoint)
    other, _ = load_policy(checkpoint)
    for weight, expected in zip(run.trainer.policy.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(weight, expected)
    release(run)
    shutil.copytree(checkpoint, tmp_path / "copy")
    resumed = resume(tmp_path / "run")  # before its first step: the other run is not needed any more
    assert torch.equal(resumed.trainer.ema.shadow_params[0], next(other.parameters()))


def test_initial_weights_that_do_not_fit_are_listed(lift_store: Store, tmp_path: Path, trained: Path) -> None:
    checkpoint = (trained / "lift/tiny/checkpoints/best").resolve()
    with pytest.raises(
        ConfigError,
        match=r"do not fit, \d+ differences: .*denoiser.input_emb.weight has shape \(16, 7\), expected \(8",
    ):
        create(tmp_path / "other", tiny_config(n_emb=8), lift_store, init_from=checkpoint)
    assert not (tmp_path / "other").exists()
    with pytest.raises(
        ConfigError, match="2 differences: n_head is 2, expected 4; prediction_type is epsilon, expected sample"
    ):
        create(tmp_path / "x", tiny_config(n_head=4, prediction_type="sample"), lift_store, init_from=checkpoint)


def test_an_existing_run_is_not_started_again(lift_store: Store, trained: Path) -> None:
    with pytest.raises(DdpError, match="--resume"):
        create(trained / "lift" / "tiny", tiny_config(), lift_store)


def test_a_store_of_another_task_is_rejected(lift_store: Store, tmp_path: Path) -> None:
    config = tiny_config()
    other = config.model_copy(update={"policy": config.policy.model_copy(update={"task": get_task("can")})})
    with pytest.raises(ConfigError, match="lift.*can"):
        create(tmp_path / "run", other, lift_store)


def test_a_task_without_an_object_trains_on_its_own_store_only(tmp_path: Path) -> None:
    task = task_from_json(DOOR | {"object": {}})
    action = {"convention": "delta", "dim": 7}
    attributes = {"render": "fast", "obs": "image", "env_args": {}, "versions": {}, "action": action}
    writer = StoreWriter(tmp_path / "s.zarr", task, [20], attributes | {"source": {"sha256": "x", "demos": [0]}}, 3)
    arrays = {"frontview_image": np.zeros((20, 84, 84, 3), np.uint8), "action": np.zeros((20, 7), np.float32)}
    writer.append(arrays | {k: np.ones((20, w), np.float32) for k, w in task.low_dim.items()})
    writer.finish({})
    store = Store(tmp_path / "s.zarr")
    run = create(tmp_path / "run", train_config(task, "image", "laptop", None, TINY | {"steps": 1}), store)
    assert set(run.trainer.step()) == {"noise", "action", "total", "grad_norm"}
    run.trainer.load_state(run.trainer.state())
    other = task_from_json(task.to_json() | {"low_dim": {}})
    with pytest.raises(ConfigError, match="'door': low_dim.robot0_eef_pos 3 instead of absent"):
        create(tmp_path / "other", train_config(other, "image", "laptop", None, TINY | {"steps": 1}), store)
