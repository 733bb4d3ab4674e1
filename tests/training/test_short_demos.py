"""Demonstrations that are shorter than a window: they are counted, and padded with `pad_short`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, ddp, ok, refused, tiny_config
from data.random_stores import ATTRIBUTES, TASK, random_episode
from training.run_helpers import CPU, ignore_message

from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.training.dataloader import load_training_data

LENGTHS = [60, 30, 38, 39, 50]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    attributes = ATTRIBUTES | {"action": {"convention": "delta", "dim": 7}}
    with StoreWriter(tmp_path / "s.zarr", TASK, LENGTHS, attributes, 3) as writer:
        writer.extend((random_episode(length, i) for i, length in enumerate(LENGTHS)), lambda *_: None)
        writer.finish({})
    return Store(tmp_path / "s.zarr")


def config(**settings: object):
    return tiny_config(horizon=48, n_obs_steps=2, n_action_steps=8, obs="state", val_ratio=0.0, **settings)


def test_short_demos_are_counted(store: Store) -> None:
    """A window may begin 1 step before the episode and end 7 steps after it: 40 steps are needed."""
    data = load_training_data(config(), store, CPU, ignore_message)
    assert (data.n_used, data.n_episodes, data.min_steps) == (2, 5, 40)
    assert len(data.train) == (60 - 39) + (50 - 39)
    assert data.describe() == "2 of 5 demonstrations, 32 windows to train on"


def test_short_demos_are_padded(store: Store) -> None:
    data = load_training_data(config(pad_short=True), store, CPU, ignore_message)
    assert (data.n_used, data.n_episodes) == (5, 5)
    assert len(data.train) == (60 - 39) + (50 - 39) + 3 * (48 - 39)
    actions = torch.from_numpy(store.read("action"))
    batch = data.train.batch(torch.tensor([22]))  # the second window of the second demo, from its first step
    expected = torch.cat([actions[60:90], actions[89].expand(18, 7)])
    assert torch.equal(batch["action"][0], expected)


def test_held_out_demos_are_counted_too(store: Store) -> None:
    settings = config(pad_short=True).model_copy(update={"val_ratio": 0.2})
    data = load_training_data(settings, store, CPU, ignore_message)
    assert data.n_held_out == 1
    assert data.describe() == (
        f"5 of 5 demonstrations, 1 of them held out ({len(data.val)} windows), {len(data.train)} windows to train on"
    )
    assert len(data.val) + len(data.train) == 59


def test_train_says_what_it_uses(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [
        x for key, value in {**TINY, "horizon": 48, "val_ratio": 0}.items() for x in ("--set", f"{key}={value}")
    ]
    command = ["train", "--task", "lift", "--obs", "state", "--data", store.path, "--steps", "1", *settings]
    result = ok(ddp(*command, "--name", "x", "--json"))
    assert "data: 2 of 5 demonstrations, 32 windows to train on" in result.stderr
    assert "warning: 3 of 5 demonstrations are not used: they have fewer than 40 steps" in result.stderr
    assert "--set pad_short=true" in result.stderr
    output = json.loads(result.stdout)
    assert (output["demonstrations"], output["demonstrations_used"], output["windows"]) == (5, 2, 32)
    result = ok(ddp(*command, "--name", "y", "--set", "pad_short=true"))
    assert "data: 5 of 5 demonstrations, 59 windows to train on" in result.stderr
    assert "warning" not in result.stderr
    result = ok(ddp("train", "--task", "lift", "--name", "x", "--resume"))
    assert "data: 2 of 5 demonstrations, 32 windows to train on" in result.stderr
    line = refused(ddp(*command, "--set", "horizon=90"))
    assert "no demonstration in" in line
    assert "The longest to train on has 60 steps: set a shorter horizon, or --set pad_short=true." in line
