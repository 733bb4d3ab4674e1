"""Actions that samples cannot reach, or that the normalizer takes for a constant, with the default settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, ddp, ok, ok_json, refused
from data.test_recordings import write_replay_buffer

SETTINGS = [x for key, value in TINY.items() for x in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_store(actions: np.ndarray, normalization: str) -> Path:
    write_replay_buffer(Path("r.zarr"), action=actions.astype(np.float32))
    schema = ok_json("inspect", "r.zarr")["schema"]
    schema["rate"] = 10
    schema["action"] = [{**part, "normalization": normalization} for part in schema["action"]]
    Path("schema.json").write_text(json.dumps(schema))
    ok(ddp("convert", "r.zarr", "--schema", "schema.json", "--out", "s.zarr", "--task", "reach", "--overwrite"))
    return Path("s.zarr")


def train(*options: object) -> tuple[str, bool]:
    """What `ddp train` prints, and whether samples of its policy are clipped."""
    command = ("train", "--data", "s.zarr", "--task", "reach", "--obs", "state", "--preset", "laptop", "--steps", 1)
    text = " ".join(ok(ddp(*command, "--name", "x", *SETTINGS, *options)).stderr.split())
    config = json.loads(Path("runs/reach/x/config.json").read_text())
    return text, config["train"]["policy"]["clip_sample"]


@pytest.mark.parametrize(
    ("normalization", "scale", "clips"),
    [("range", 5.0, True), ("gaussian", 5.0, False), ("identity", 5.0, False), ("identity", 0.5, True)],
)
def test_samples_are_clipped_only_to_what_was_recorded(normalization: str, scale: float, clips: bool) -> None:
    make_store(np.random.default_rng(0).uniform(-scale, scale, (17, 2)), normalization)
    text, clip_sample = train()
    assert clip_sample == clips
    assert ("clip_sample=false: action[0], action[1] reach beyond -1 to 1" in text) != clips


def test_clipping_is_set_by_the_user() -> None:
    make_store(np.random.default_rng(0).normal(size=(17, 2)), "gaussian")
    assert train("--set", "clip_sample=true")[1]


def test_motions_in_a_tiny_range_are_named() -> None:
    actions = np.zeros((17, 2))
    actions[:, 0] = 4e-5 * np.sin(np.arange(17))
    make_store(actions, "range")
    assert "action[0]: the recorded values differ by less than 0.0001 and are learned as a constant" in train()[0]
    actions[:, 0] = 0.3 + 4e-5 * np.sin(np.arange(17))  # the noise of a goal that stays
    make_store(actions, "range")
    assert "are learned as a constant" not in train("--name", "y")[0]


def test_a_configuration_of_other_actions_is_refused(lift_zarr: Path) -> None:
    for values in ({"policy": {"actions": "absolute"}}, {"actions": "absolute"}):
        Path("file.json").write_text(json.dumps(values))
        command = ("train", "--data", lift_zarr, "--task", "lift", "--obs", "state", "--config", "file.json")
        assert "holds delta actions, the configuration says absolute" in refused(ddp(*command))
