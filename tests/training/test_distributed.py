from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_config
from training.run_helpers import resume, saved_steps, train_new_run

from ddp_cli.data.store import Store
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.run import run_training

pytestmark = pytest.mark.slow

TRAIN_IN_TWO_PROCESSES = """
import sys, json, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from conftest import tiny_config
from ddp_cli.training.distributed import init_processes
from ddp_cli.training.run import create_run, run_training
from ddp_cli.training.resume import resume_run
from ddp_cli.training.loop import Callbacks
from ddp_cli.data.store import Store
CPU = torch.device("cpu")
ignore_message = lambda _: None
with init_processes() as processes:
    config = tiny_config(**json.loads(sys.argv[4]))
    folder = Path(sys.argv[3])
    if processes.run_on_main(folder.exists):  # one answer for both: the main process creates the folder
        run = resume_run(folder, CPU, ignore_message, ignore_message, processes)
    else:
        run = create_run(folder, config, Store(Path(sys.argv[2])), CPU, ignore_message, processes)
    stop_at, evaluated = int(sys.argv[5]), []
    def should_stop():
        return processes.rank == 1 and run.trainer.step_number >= stop_at or bool(evaluated)
    run_training(run, Callbacks(evaluate=lambda _: evaluated.append(1), should_stop=should_stop))
    assert run.trainer.shard == (slice(0, 3) if processes.is_main else slice(3, 7))
    sums = processes.gather([p.double().sum().item() for p in run.trainer.policy.parameters()])
    assert sums[0] == sums[1]
"""


def train_in_two_processes(store: Path, folder: Path, settings: dict[str, object], stop_at: int) -> None:
    script = folder.with_suffix(".py")
    script.write_text(TRAIN_IN_TWO_PROCESSES)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    values = [Path(__file__).parents[1], store, folder, json.dumps(settings), stop_at]
    command = [sys.executable, *torchrun, str(script), *map(str, values)]
    result = subprocess.run(  # noqa: PLW1510
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr


def test_ctrl_c_in_an_evaluation_stops_both_processes_at_that_step(lift_zarr: Path, tmp_path: Path) -> None:
    """So that --resume repeats the evaluation."""
    train_in_two_processes(lift_zarr, tmp_path / "two", {"steps": 6, "eval_every": 3, "batch_size": 7}, 99)
    assert saved_steps(tmp_path / "two") == [3]


# With seed 42 and a prefix, rounding moves an activation of an image encoder across a kink: 1e-7 become 1e-4.
@pytest.mark.parametrize(("prefix_steps", "seed"), [(0, 42), (4, 1)])
def test_two_processes_train_like_one(
    lift_store: Store, lift_zarr: Path, tmp_path: Path, prefix_steps: int, seed: int
) -> None:
    """The same losses for the same global batch, and a run may be resumed by another number of processes."""
    settings = {"steps": 16, "batch_size": 7, "precision": "fp32", "lr": 1e-3, "object_loss": 1.0, "accumulate": 2}
    settings |= {"prefix_steps": prefix_steps, "seed": seed}

    def losses(name: str) -> list[float]:
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [x for line in lines if "loss" in line for x in (line["loss"], line["object_loss"], line["grad_norm"])]

    train_new_run(lift_store, tmp_path / "one", tiny_config(**settings))
    train_in_two_processes(lift_zarr, tmp_path / "two", settings, 10)  # one process wants to stop, and both do
    assert saved_steps(tmp_path / "two")[-1] == 10
    shutil.copytree(tmp_path / "two", tmp_path / "mixed", symlinks=True)
    train_in_two_processes(lift_zarr, tmp_path / "two", settings, 99)
    run_training(resume(tmp_path / "mixed"), Callbacks())
    assert len(losses("one")) == 48
    assert losses("two") == pytest.approx(losses("one"), abs=1e-5)
    assert losses("mixed") == pytest.approx(losses("one"), abs=1e-5)
