"""The trained policy in sample_data: it works at once, and a change that makes it worse is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ddp, ok, ok_json, read_video

import ddp_cli

SAMPLES = Path(__file__).parents[1] / "sample_data"
POLICY = SAMPLES / "square-policy"

FIRST_SEED, EPISODES = 100_000, 120
UNSURE_SEEDS = {100001, 100010, 100028, 100029, 100043, 100058, 100087, 100088, 100091, 100108, 100109}
"""Seeds at which an episode failed with ONNX Runtime, with PyTorch without vector instructions, or with DDPM."""

MAX_FAILURES = 2
"""At the other 109 seeds all succeeded. Contacts amplify rounding, so on other processors one of them may fail:
of 111 successes with ONNX Runtime, PyTorch had one failure. A policy that loses five in a hundred fails at some five of
these."""

MAX_MEAN_ERROR, MAX_MEDIAN_ERROR = 11.2, 7.4
"""[mm], distance between predicted and demonstrated goals: measured are 10.9 and 7.1. Rounding does not matter here, so
mistakes in the data path show at once: repeated observations give 11.5 and 7.7, a reversed order 16 and 11, swapped
colours 59 and 50, positions that are 1 cm off 12.2 and 9.3."""


@pytest.mark.slow
def test_success_rate_is_the_recorded_one() -> None:
    report = ok_json("eval", POLICY, "--episodes", EPISODES, "--seed", FIRST_SEED, "--workers", 2)
    failures = {episode["seed"] for episode in report["episodes"] if not episode["success"]} - UNSURE_SEEDS
    assert len(failures) <= MAX_FAILURES, failures


@pytest.mark.slow
def test_predicted_actions_are_close_to_the_demonstrations(tmp_path: Path) -> None:
    ok(ddp("convert", SAMPLES / "square.hdf5", "--only", ":2", "--actions", "absolute", "--out", tmp_path / "s.zarr"))
    store, policy = ddp_cli.open_store(tmp_path / "s.zarr"), ddp_cli.load_policy(POLICY)
    arrays = {key: store.read(key) for key in (*policy.obs_shapes, "action")}
    predicted, demonstrated = [], []
    for begin, end in [(0, store.episode_ends[0]), (store.episode_ends[0], store.episode_ends[1])]:
        for step in range(begin + 1, end - 8, 4):
            policy.reset(step)
            predicted.append(policy.act({key: arrays[key][step - 1 : step + 1] for key in policy.obs_shapes}))
            demonstrated.append(arrays["action"][step : step + 8])
    difference = np.stack(predicted)[..., :3] - np.stack(demonstrated)[..., :3]
    errors = np.linalg.norm(difference, axis=-1) * 1000
    assert errors.mean() < MAX_MEAN_ERROR
    assert np.median(errors) < MAX_MEDIAN_ERROR


@pytest.mark.slow
def test_a_video_of_a_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # An episode that does not depend on the last digit, which differs between processors.
    output = ok(ddp("rollout", POLICY, "--seed", 100_002, "--video", "out.mp4", "--json")).stdout
    [episode] = json.loads(output)["episodes"]
    assert episode["success"]
    assert len(read_video(Path("out.mp4"))) > episode["steps"]  # recording continues while success is held


def test_the_checkpoint_is_small_and_without_training_state() -> None:
    assert sum(path.stat().st_size for path in POLICY.iterdir()) <= 8_000_000
    assert not (POLICY / "train_state.pt").exists()
