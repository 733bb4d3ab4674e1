"""Commands run by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ok_json

pytestmark = pytest.mark.slow


def torchrun(*args: object, cwd: Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "ddp_cli.cli", *(str(a) for a in args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_two_processes_train_one_run_and_share_the_episodes_of_an_evaluation(lift_zarr: Path, tmp_path: Path) -> None:
    tiny = {"n_layer": 1, "n_emb": 16, "n_head": 2, "num_inference_steps": 1}
    settings = [x for key, value in tiny.items() for x in ("--set", f"{key}={value}")]
    options = ["--task", "lift", "--data", lift_zarr, "--preset", "laptop", "--steps", 2]
    out = torchrun("train", *options, *settings, "--json", cwd=tmp_path)
    run = tmp_path / json.loads(out)["run"]  # one document: only the main process prints
    assert len(list((tmp_path / "runs/lift").iterdir())) == 1
    two = json.loads(torchrun("eval", run, "--episodes", 3, "--workers", 1, "--json", cwd=tmp_path))
    one = ok_json("eval", run, "--episodes", 3)
    assert [e["seed"] for e in two["episodes"]] == [100_000, 100_001, 100_002]
    for a, b in zip(one["episodes"], two["episodes"], strict=True):
        assert {**a, "chunk_ms": 0} == {**b, "chunk_ms": 0}
