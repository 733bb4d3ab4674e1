"""`ddp collect --policy` as a user runs it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import pytest
from conftest import ddp, ok_json, refused

from ddp_cli.seeds import FIRST_POLICY_SEED
from ddp_cli.tasks import TASKS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "lift", dataclasses.replace(TASKS["lift"], horizon=100))


def policy_hash(path: str) -> str:
    with h5py.File(path) as file:
        return str(json.loads(file["data"].attrs["identity"])["policy"]["sha256"])


@pytest.mark.slow
def test_a_run_acts_and_its_episodes_are_kept(trained: Path) -> None:
    report = ok_json("collect", "--policy", trained / "lift/tiny", "-n", 1, "--out", "d.hdf5", "--workers", 1)
    assert (report["demos"], report["policy_successes"], report["takeovers"], report["steps"]) == (1, 0, 0, 100)
    with h5py.File("d.hdf5") as file:
        assert dict(file["data/demo_0"].attrs).items() >= {
            "seed": FIRST_POLICY_SEED, "policy_steps": 100, "success": False,
        }.items()  # fmt: skip


@pytest.mark.slow
def test_an_exported_policy_acts_until_the_takeover(trained: Path, policy_folder: Path) -> None:
    command = ("collect", "--takeover", "-n", 1, "--workers", 1, "--policy")
    report = ok_json(*command, policy_folder, "--out", "exported.hdf5")
    assert (report["demos"], report["takeovers"]) == (1, 1)
    ok_json(*command, trained / "lift/tiny", "--out", "run.hdf5")
    assert policy_hash("exported.hdf5") != policy_hash("run.hdf5")


def test_policies_that_do_not_fit_are_refused(trained: Path, reach_run: Path, tmp_path: Path) -> None:
    run = trained / "lift/tiny"
    other_task = refused(ddp("collect", "--policy", run, "--task", "can"))
    assert "is a policy of lift, not of can. Leave out --task" in other_task
    assert "is a policy of lift, not of lift_iiwa" in refused(
        ddp("collect", "--policy", run, "--task", "lift", "--robot", "IIWA")
    )
    assert "no scripted policy for 'reach', only for lift, can, square" in refused(
        ddp("collect", "--policy", reach_run)
    )
    assert "no checkpoint folder 'none'" in refused(ddp("collect", "--policy", "none"))
    for option in (["--takeover"], ["--inference-steps", "4"], ["--engine", "torch"]):
        assert f"{option[0]} needs a policy that acts. Name one with --policy CHECKPOINT" in refused(
            ddp("collect", *option)
        )
    assert list(tmp_path.iterdir()) == []
