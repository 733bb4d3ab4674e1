from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOOR, TINY, tiny_config

from ddp_cli.config import TrainConfig
from ddp_cli.core.checkpoint import TRAIN_STATE, checkpoints, load_policy, load_train_state
from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import CheckpointError, ConfigError, DataError, DdpError
from ddp_cli.presets import train_config
from ddp_cli.tasks import get_task, task_from_json
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.distributed import Processes
from ddp_cli.training.loop import BAD_STEPS, Callbacks, plan_steps
from ddp_cli.training.run import Run, create_run, go, resume_run

CPU = torch.device("cpu")


def quiet(_text: str) -> None:
    pass


def create(folder: Path, config: TrainConfig, store: Store, **kwargs: object) -> Run:
    return create_run(folder, config, store, CPU, quiet, **kwargs)


def reopen(folder: Path, warn=pytest.fail) -> Run:
    return resume_run(folder, CPU, warn, quiet)


def close(run: Run) -> Run:
    """As if its process had ended."""
    run.lock.close()
    return run


def run_of(store: Store, folder: Path, config: TrainConfig, stop_at: int | None = None) -> Run:
    run = create(folder, config, store)
    go(run, Callbacks(should_stop=lambda: run.trainer.step_number == stop_at))
    return close(run)


def assert_same_training(a: Run, b: Run) -> None:
    """Bit for bit: weights, EMA, moments of the optimiser."""
    one, two = a.trainer.state(), b.trainer.state()
    assert one["step"] == two["step"]
    assert one["ema_step"] == two["ema_step"]
    assert all(torch.equal(x, y) for x, y in zip(one["ema"], two["ema"], strict=True))
    assert all(torch.equal(x, two["objective"][k]) for k, x in one["objective"].items())
    for k, moments in one["optimizer"]["state"].items():
        assert all(torch.equal(x, two["optimizer"]["state"][k][name]) for name, x in moments.items())


def steps_of(folder: Path) -> list[int]:
    return [int(p.name[5:]) for p in checkpoints(folder)]


def test_resumed_training_equals_uninterrupted_training(lift_store: Store, tmp_path: Path) -> None:
    """Interrupted in the middle of the first epoch, in the step that ends it, and in the second."""
    windows = len(load_training_data(tiny_config(), lift_store, CPU, quiet).train)
    assert 5 * 7 < windows < 5 * 8
    config = tiny_config(steps=20, batch_size=5, object_loss=1.0, checkpoint_every=100, p_drop_attn=0.2)
    whole = run_of(lift_store, tmp_path / "whole", config)
    run_of(lift_store, tmp_path / "cut", config, 4)
    for stop_at in (8, 11, 99):
        cut = reopen(tmp_path / "cut")
        go(cut, Callbacks(should_stop=lambda: cut.trainer.step_number == stop_at))  # noqa: B023
        close(cut)
    assert cut.trainer.step_number == 20
    assert_same_training(whole, cut)


KILLED = """
import os, signal, sys
from pathlib import Path
import ddp_cli.core.checkpoint as checkpoint, ddp_cli.training.trainer as trainer
from ddp_cli.cli import app
place, number = sys.argv.pop(1), int(sys.argv.pop(1))
count = 0
def killing(function):
    def wrapped(*args, **kwargs):
        global count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped
if place == "step":
    trainer.Trainer.step = killing(trainer.Trainer.step)
elif place == "sync":
    checkpoint.sync = killing(checkpoint.sync)
elif place == "rename":
    Path.rename = killing(Path.rename)
app()
"""


@pytest.mark.parametrize(
    ("place", "number", "left"),
    [
        ("step", 6, [4]),  # in an epoch, behind a checkpoint
        ("sync", 8, [4]),  # the second checkpoint is half on the disk (two for the run, five for each checkpoint)
        ("rename", 2, [4]),  # ... written, and not yet named
    ],
)
def test_a_killed_process_loses_nothing(lift_zarr: Path, tmp_path: Path, place: str, number: int, left: list) -> None:
    """SIGKILL of the real process; what goes on afterwards ends as if it had never been killed."""
    settings = {"n_layer": 1, "n_emb": 16, "n_head": 2, "batch_size": 4, "checkpoint_every": 4}
    command = ["train", "--task", "lift", "--data", lift_zarr, "--steps", 9, "--runs", tmp_path, "--preset", "laptop"]
    command += [x for k, v in settings.items() for x in ("--set", f"{k}={v}")]
    command = [str(x) for x in (*command, "--name", "killed")]
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-c", KILLED, place, str(number), *command], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = tmp_path / "lift/killed"
    assert steps_of(run) == left
    resumed = reopen(run)
    assert resumed.trainer.step_number == left[-1]
    assert list((run / "checkpoints").glob(".*partial")) == []
    go(resumed, Callbacks())
    close(resumed)
    whole = run_of(Store(lift_zarr), tmp_path / "whole", resumed.trainer.config)
    assert_same_training(whole, resumed)
    assert steps_of(run) == steps_of(tmp_path / "whole") == [4, 8, 9]


def test_a_full_disk_leaves_the_last_checkpoint(lift_store: Store, tmp_path: Path, monkeypatch) -> None:
    run = create(tmp_path / "run", tiny_config(steps=6, checkpoint_every=2), lift_store)
    step, write = run.trainer.step, Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:100])
        raise OSError(28, "No space left on device")

    def filling() -> dict:
        if run.trainer.step_number == 3:
            monkeypatch.setattr(Path, "write_bytes", full)
        return step()

    run.trainer.step = filling
    with pytest.raises(OSError, match="No space"):
        go(run, Callbacks())
    close(run)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir() if p.is_dir() and not p.is_symlink()] == [
        "step-00000002"
    ]
    assert reopen(tmp_path / "run").trainer.step_number == 2


def test_resume_passes_over_a_damaged_checkpoint(lift_store: Store, tmp_path: Path) -> None:
    run_of(lift_store, tmp_path / "run", tiny_config(steps=4, checkpoint_every=2))
    newest = checkpoints(tmp_path / "run")[-1] / TRAIN_STATE
    newest.write_bytes(newest.read_bytes()[:1000])
    warnings: list[str] = []
    run = reopen(tmp_path / "run", warnings.append)
    assert run.trainer.step_number == 2
    assert "step-00000004" in warnings[0]
    go(run, Callbacks())
    assert load_train_state(newest.parent)["step"] == 4  # and writes it anew
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.parametrize("name", [TRAIN_STATE, "model.safetensors"])
def test_a_checkpoint_with_a_wrong_byte_is_passed_over(lift_store: Store, tmp_path: Path, name: str) -> None:
    run_of(lift_store, tmp_path / "run", tiny_config(steps=4, checkpoint_every=2))
    path = checkpoints(tmp_path / "run")[-1] / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    warnings: list[str] = []
    assert reopen(tmp_path / "run", warnings.append).trainer.step_number == 2
    assert f"{name}' is not what was written" in warnings[0]


def test_a_run_whose_checkpoints_are_all_damaged_is_left_as_it_is(lift_store: Store, tmp_path: Path) -> None:
    run_of(lift_store, tmp_path / "run", tiny_config(steps=4, checkpoint_every=2))
    for path in checkpoints(tmp_path / "run"):
        (path / TRAIN_STATE).unlink()

    def files() -> list[tuple[Path, int]]:
        return sorted((p, p.stat().st_size) for p in (tmp_path / "run").rglob("*") if p.is_file())

    before = files()
    with pytest.raises(CheckpointError, match="left as they are.*--init-from .*step-00000004"):
        reopen(tmp_path / "run", lambda _: None)
    assert files() == before


@pytest.mark.parametrize(
    ("key", "value"), [("total_steps", "abc"), ("total_steps", -3), ("train", "x"), ("format", 9), ("store", {})]
)
def test_a_damaged_description_of_a_run_is_named(lift_store: Store, tmp_path: Path, key: str, value: object) -> None:
    run_of(lift_store, tmp_path / "run", tiny_config(steps=1))
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DdpError, match="not the store" if key == "store" else "is damaged"):
        reopen(tmp_path / "run")


def test_damaged_numbers_do_not_stop_a_run(lift_store: Store, tmp_path: Path) -> None:
    run_of(lift_store, tmp_path / "run", tiny_config(steps=4), stop_at=2)
    with (tmp_path / "run/metrics.jsonl").open("ab") as metrics:
        metrics.write(b'\xff\xfe\n{"step": "2"}\n[1]\n{"step": 2, "loss": "x"}\n{"step": 1, "lo')
    go(reopen(tmp_path / "run"), Callbacks())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_what_an_interruption_left_of_a_run_that_never_began_is_in_nobodys_way(
    lift_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ddp_cli.training.run.sync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            create(tmp_path / "run", tiny_config(), lift_store)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run/checkpoints").mkdir(parents=True)  # as after SIGKILL
    create(tmp_path / "run", tiny_config(), lift_store)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(DdpError, match="exists"):
        create(tmp_path / "other", tiny_config(), lift_store)


def test_episodes_that_were_interrupted_are_run_on_going_on(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(steps=6, eval_every=3), lift_store)
    asked: list[int] = []
    go(run, Callbacks(rollouts=lambda _: asked.append(1), should_stop=lambda: bool(asked)))
    assert steps_of(tmp_path / "run") == [3]  # not one step further
    close(run)
    again, seen = reopen(tmp_path / "run"), []
    go(again, Callbacks(rollouts=lambda path: seen.append(path.name) or 0.5))
    assert seen == ["step-00000003", "step-00000006"]


def test_a_run_is_trained_by_one_process(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(), lift_store)
    with pytest.raises(DdpError, match="another process"):
        reopen(tmp_path / "run")
    close(run)
    reopen(tmp_path / "run", lambda _: None)


def test_after_some_steps_that_are_not_finite_training_stops(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(steps=40, checkpoint_every=4), lift_store)
    draw = run.trainer.policy.draw
    poisoned_from = {"step": 2, "until": 2 + BAD_STEPS - 1}

    def poisoned(*args: object, **kwargs: object):
        draws = draw(*args, **kwargs)
        if poisoned_from["step"] <= run.trainer.step_number < poisoned_from["until"]:
            draws.noise.fill_(math.nan)
        return draws

    run.trainer.policy.draw = poisoned
    go(run, Callbacks(should_stop=lambda: run.trainer.step_number == 10))  # four in a row: it goes on
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert logged[-1]["skipped_steps"] == BAD_STEPS - 1
    assert math.isfinite(logged[-1]["loss"])
    run = reopen(tmp_path / "run", close(run) and pytest.fail)
    assert int(run.trainer.safe_step.skipped) == BAD_STEPS - 1
    run.trainer.policy.draw, poisoned_from["step"], poisoned_from["until"] = poisoned, 13, 99
    draw = type(run.trainer.policy).draw.__get__(run.trainer.policy)
    with pytest.raises(DdpError, match=f"{BAD_STEPS} steps in a row were not finite.*last checkpoint is good"):
        go(run, Callbacks())
    policy, _ = load_policy(checkpoints(tmp_path / "run")[-1])
    assert all(torch.isfinite(p).all() for p in policy.parameters())


def test_the_newest_checkpoints_and_the_best_are_kept(lift_store: Store, tmp_path: Path) -> None:
    config = tiny_config(steps=12, eval_every=2, keep=2)
    run = create(tmp_path / "run", config, lift_store)
    rates = {2: 0.1, 4: 0.9, 6: 0.2, 8: None, 10: 0.9, 12: 0.3}
    seen = []

    def rollouts(checkpoint: Path) -> float | None:
        load_policy(checkpoint)
        seen.append(int(checkpoint.name[5:]))
        return rates[seen[-1]]

    go(run, Callbacks(rollouts=rollouts, should_stop=lambda: run.trainer.step_number == 9))
    assert seen == [2, 4, 6, 8]
    assert steps_of(tmp_path / "run") == [4, 6, 8, 9]
    best = tmp_path / "run/checkpoints/best"
    assert best.resolve().name == "step-00000004"
    close(run)
    again = reopen(tmp_path / "run")
    go(again, Callbacks(rollouts=rollouts))
    assert seen == [2, 4, 6, 8, 10, 12]
    assert best.resolve().name == "step-00000010"  # of equals the later
    assert steps_of(tmp_path / "run") == [10, 12]
    assert (tmp_path / "run/checkpoints/last").resolve().name == "step-00000012"


def test_a_checkpoint_is_written_when_the_last_is_old(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(steps=5, checkpoint_minutes=1e-9, keep=1), lift_store)
    found = []
    go(run, Callbacks(report=lambda p: found.append((p.step, steps_of(tmp_path / "run")))))
    assert found[1:] == [(2, [1]), (3, [2]), (4, [3]), (5, [4])]


def test_another_policys_weights_to_begin_with(lift_store: Store, tmp_path: Path, trained: Path) -> None:
    checkpoint = (trained / "lift/tiny/checkpoints/best").resolve()
    run = create(tmp_path / "run", tiny_config(lr=1e-9), lift_store, init_from=checkpoint)
    theirs, _ = load_policy(checkpoint)
    for mine, other in zip(run.trainer.policy.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    close(run)
    shutil.copytree(checkpoint, tmp_path / "copy")
    again = reopen(tmp_path / "run")  # before its first step: needs the other run no more
    assert torch.equal(again.trainer.ema.shadow_params[0], next(theirs.parameters()))
    with pytest.raises(
        ConfigError, match=r"do not fit, \d+ differ: .*denoiser.input_emb.weight is \(16, 7\), here \(8"
    ):
        create(tmp_path / "other", tiny_config(n_emb=8), lift_store, init_from=checkpoint)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="2 differ: n_head is 2, here 4; prediction_type is epsilon, here sample"):
        create(tmp_path / "x", tiny_config(n_head=4, prediction_type="sample"), lift_store, init_from=checkpoint)


def test_stopping_before_the_first_step_saves_nothing(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(), lift_store)
    assert go(run, Callbacks(should_stop=lambda: True)) is None
    assert checkpoints(tmp_path / "run") == []


def test_resume_refuses_another_store(lift_store: Store, tmp_path: Path) -> None:
    run_of(lift_store, tmp_path / "run", tiny_config(steps=1))
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    content["store"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not the store"):
        reopen(tmp_path / "run")


def test_a_state_of_another_version_is_passed_over(lift_store: Store, tmp_path: Path) -> None:
    run_of(lift_store, tmp_path / "run", tiny_config(steps=1))
    state = load_train_state(checkpoints(tmp_path / "run")[0])
    run = reopen(tmp_path / "run")
    with pytest.raises(CheckpointError, match="does not fit this run"):
        run.trainer.load_state({k: v for k, v in state.items() if k != "ema"})


def test_checkpoint_holds_the_ema_weights(trained: Path) -> None:
    folder = (trained / "lift/tiny/checkpoints/best").resolve()
    policy, _ = load_policy(folder)
    state = torch.load(folder / TRAIN_STATE, weights_only=True)
    for shadow, parameter in zip(state["ema"], policy.parameters(), strict=True):
        assert torch.equal(shadow, parameter)


def test_metrics_are_recorded(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    for name in ("grad_norm", "action_loss", "object_loss", "samples_per_s"):
        assert all(line[name] > 0 for line in lines if "loss" in line)
    held_out = [line for line in lines if "val_loss" in line]
    assert held_out
    assert all(math.isfinite(line[name]) for line in held_out for name in ("val_loss", "position_error_mm"))
    assert list(run.glob("events.out.tfevents.*"))


def test_minutes_and_epochs_become_steps(lift_store: Store) -> None:
    data = load_training_data(tiny_config(), lift_store, CPU, quiet)

    def plan(**lengths: float) -> tuple[int, float]:
        return plan_steps(tiny_config(steps=0, **lengths), data, CPU, Processes())

    assert plan(epochs=2)[0] == round(2 * len(data.train) / 4)
    total, rate = plan(minutes=1)
    assert 0.5 < total / (rate * 60) <= 1.0


def test_a_run_is_not_begun_twice(lift_store: Store, trained: Path) -> None:
    with pytest.raises(DdpError, match="--resume"):
        create(trained / "lift" / "tiny", tiny_config(), lift_store)


def test_a_store_of_another_task_is_refused(lift_store: Store, tmp_path: Path) -> None:
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
    with pytest.raises(ConfigError, match="another 'door': low_dim.robot0_eef_pos 3 instead of absent"):
        create(tmp_path / "other", train_config(other, "image", "laptop", None, TINY | {"steps": 1}), store)


TWO = """
import sys, json, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from conftest import tiny_config
from ddp_cli.training.distributed import processes
from ddp_cli.training.run import create_run, go, reopen_run
from ddp_cli.training.loop import Watchers
from ddp_cli.data.store import Store
CPU = torch.device("cpu")
quiet = lambda _: None
with processes() as together:
    config = tiny_config(**json.loads(sys.argv[4]))
    folder = Path(sys.argv[3])
    if folder.exists():
        run = reopen_run(folder, CPU, quiet, quiet, together)
    else:
        run = create_run(folder, config, Store(Path(sys.argv[2])), CPU, quiet, together)
    stop_at = int(sys.argv[5])
    go(run, Watchers(should_stop=lambda: together.rank == 1 and run.trainer.step_number >= stop_at))
    assert run.trainer.share == slice(0, 3) if together.first else slice(3, 7)
    everywhere = together.gather([p.double().sum().item() for p in run.trainer.policy.parameters()])
    assert everywhere[0] == everywhere[1]
"""


def test_two_processes_train_as_one(lift_store: Store, lift_zarr: Path, tmp_path: Path) -> None:
    """The same losses for the same global batch, and resume with another number of processes."""
    settings = {"steps": 16, "batch_size": 7, "precision": "fp32", "lr": 1e-3, "object_loss": 1.0, "accumulate": 2}

    def two(stop_at: int) -> None:
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        script = tmp_path / "two.py"
        script.write_text(TWO)
        values = [Path(__file__).parents[1], lift_zarr, tmp_path / "two", json.dumps(settings), stop_at]
        command = [sys.executable, *torchrun, str(script), *map(str, values)]
        done = subprocess.run(  # noqa: PLW1510
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def losses(name: str) -> list[float]:
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [x for line in lines if "loss" in line for x in (line["loss"], line["object_loss"], line["grad_norm"])]

    run_of(lift_store, tmp_path / "one", tiny_config(**settings))
    two(10)  # asked of one process, and agreed on by both
    assert steps_of(tmp_path / "two")[-1] == 10
    shutil.copytree(tmp_path / "two", tmp_path / "mixed", symlinks=True)
    two(99)
    go(reopen(tmp_path / "mixed"), Callbacks())
    assert len(losses("one")) == 48
    assert losses("two") == pytest.approx(losses("one"), abs=1e-5)
    assert losses("mixed") == pytest.approx(losses("one"), abs=1e-5)
