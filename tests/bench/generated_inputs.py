"""Runs `ddp` on generated inputs: `python tests/bench/generated_inputs.py --count 2000 --seed 0 [--kinds hdf5,zarr]`.

Each input is a valid file or folder (demonstrations, store, LeRobot dataset, published checkpoint, checkpoint,
exported folder, JSON) that was damaged at random, or a random command line. A fault is

- an exception that is not an error of the user, or more than one line of error;
- an output, or a part of one, after an error;
- a store that opens but holds other data than its source (for damage that does not change the data);
- a store whose check passed although the actions of its recording were changed.

Prints the number of inputs and of refusals per kind, and every fault with the seed that makes it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import h5py
import numpy as np
import pytest
from bench.damage import SEMANTIC, damage_aloha, damage_ckpt, damage_folder, damage_hdf5, damage_json
from data.test_lerobot_recording import write_v2, write_v3
from data.test_recordings import write_aloha, write_replay_buffer
from typer.testing import CliRunner

from ddp_cli.cli import app
from ddp_cli.commands.options import sample_demos
from ddp_cli.data.store import Store

N_DEMOS = 2


class Fault(Exception):
    """A command behaved as none should."""


def run(*args: object) -> tuple[int, str]:
    """Exit code and output of a command; Fault if it ended with an exception or with several errors."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise Fault("".join(traceback.format_exception(result.exception)[-6:]))
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    if result.exit_code not in (0, 1, 2) or "Traceback" in result.output or "error: unexpected" in result.output:
        details = re.search(r"The traceback is in '([^']+)'", result.output)
        more = Path(details[1]).read_text() if details else ""
        raise Fault(f"exit code {result.exit_code}: {(result.output + more)[-1500:]}")
    if (result.exit_code == 0) != (not errors) or len(errors) > 1:
        raise Fault(f"exit code {result.exit_code} with {len(errors)} errors: {result.output[-1500:]}")
    return result.exit_code, result.output


# -- valid inputs ---------------------------------------------------------------------------------


def make_inputs(folder: Path) -> dict[str, Path]:
    """A small valid input of each kind."""
    from conftest import TINY
    from core.published_checkpoint import published_cfg, save_ckpt
    from core.published_recipe import state_dict

    from ddp_cli.policy_config import PolicyConfig

    demos = folder / "demos.hdf5"
    source = sample_demos("lift")
    assert source is not None
    with h5py.File(source) as f, h5py.File(demos, "w") as out:
        data = out.create_group("data")
        data.attrs["env_args"] = f["data"].attrs["env_args"]
        f.copy("models", out)
        for i in range(N_DEMOS):
            f.copy(f"data/demo_{i}", data)
            del data[f"demo_{i}/intended"]
    run("convert", demos, "--out", folder / "store.zarr", "--check", 0, "--workers", 1)
    run("convert", folder / "store.zarr", "--to", "lerobot", "--out", folder / "lerobot")
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    store, runs = folder / "store.zarr", folder / "runs"
    run("train", "--task", "lift", "--data", store, "--steps", 2, *settings, "--name", "r", "--runs", runs)
    shutil.copytree((runs / "lift/r/checkpoints/last").resolve(), folder / "checkpoint")
    run("export", folder / "checkpoint", "--out", folder / "policy")
    config = PolicyConfig(task="square", n_layer=1, n_emb=16, num_inference_steps=2)
    cfg = published_cfg(n_layer=1, n_emb=16, num_inference_steps=2)
    save_ckpt(folder / "model.ckpt", cfg, state_dict(config), pytest.MonkeyPatch())
    (folder / "task.json").write_text(
        json.dumps({"name": "door", "env_name": "Door", "low_dim": {"robot0_eef_pos": 3}})
    )
    return {
        "hdf5": demos, "zarr": store, "lerobot": folder / "lerobot", "ckpt": folder / "model.ckpt",
        "checkpoint": folder / "checkpoint", "policy": folder / "policy", "json": folder / "task.json",
        **make_recordings(folder),
    }  # fmt: skip


def make_recordings(folder: Path) -> dict[str, Path]:
    """A small recording of any robot of each kind."""
    write_replay_buffer(folder / "replay.zarr")
    write_replay_buffer(folder / "replay3.zarr", zarr_format=3)
    write_aloha(folder / "aloha", encoded=False)
    write_aloha(folder / "aloha_jpeg", encoded=True)
    return {
        "replay buffer": folder / "replay.zarr", "replay buffer 3": folder / "replay3.zarr", "aloha": folder / "aloha",
        "aloha jpeg": folder / "aloha_jpeg", "recording v2.1": write_v2(folder / "v21"),
        "recording v3.0": write_v3(folder / "v30"),
    }  # fmt: skip


# -- commands on a damaged input ------------------------------------------------------------------


def check_outputs(folder: Path, allowed: set[str]) -> None:
    """Fault if a command left anything but `allowed` names in `folder`."""
    left = {p.name for p in folder.iterdir()} - allowed
    if left:
        raise Fault(f"left behind: {sorted(left)}")


def try_recording(path: Path, folder: Path, rng: random.Random, effect: str, source: Store) -> int:
    """`ddp inspect` and `ddp convert` of demonstrations or a LeRobot dataset: they agree, and what passes is right."""
    inspect_code, text = run("inspect", path)
    options = ["--obs", "state"] if path.is_file() else []
    options += ["--check", "1" if effect == SEMANTIC else "0"] if path.is_file() else []
    options += ["--skip-bad"] if path.is_file() and rng.random() < 0.3 else []
    out = folder / "out.zarr"
    code, _ = run("convert", path, "--out", out, *options, *(["--workers", "1"] if path.is_file() else []))
    if code:
        check_outputs(folder, {path.name})
        if not inspect_code and "rejects" not in text and "needs" not in text and effect != SEMANTIC:
            raise Fault(f"inspect announces a conversion that is refused: {' '.join(text.split())[-400:]}")
        return code
    store = Store(out)
    if effect == SEMANTIC and store.check["result"] == "passed":
        raise Fault(f"passed: {store.check}")
    arrays = [store.read(key) for key in ("action", *store.image_keys, *store.task.vectors("state"))]
    if not all(np.isfinite(a).all() and len(a) == store.episode_ends[-1] for a in arrays):
        raise Fault("the store holds values that are not finite, or arrays of different lengths")
    check_outputs(folder, {path.name, "out.zarr"})
    return code


def try_any_robot(path: Path, folder: Path, rng: random.Random, effect: str, source: Store) -> int:
    """`ddp inspect` and `ddp convert` of a recording of any robot: they agree, and what is converted is whole."""
    inspect_code, text = run("inspect", path)
    options = ["--rate", "10"] if path.name.startswith("replay") else []
    options += ["--skip-bad"] if rng.random() < 0.3 else []
    out = folder / "out.zarr"
    code, message = run("convert", path, "--out", out, *options)
    if code:
        check_outputs(folder, {path.name})
        # What is wrong with the images and values of an episode is found only when it is read.
        if not inspect_code and "takes" in text and not re.search("episode|damaged|decode", message):
            raise Fault(f"inspect announces a conversion that is refused: {' '.join((text + message).split())[-600:]}")
        return code
    store = Store(out)
    arrays = [store.read(key) for key in ("action", *store.image_keys, *store.task.low_dim)]
    if not all(np.isfinite(a).all() and len(a) == store.episode_ends[-1] for a in arrays):
        raise Fault("the store holds values that are not finite, or arrays of different lengths")
    check_outputs(folder, {path.name, "out.zarr"})
    return code


def try_store(path: Path, folder: Path, rng: random.Random, effect: str, source: Store) -> int:
    """`ddp inspect`, and a copy: it holds the data of the intact store, or it is refused."""
    run("inspect", path)
    code, _ = run("convert", path, "--out", folder / "out.zarr")
    if code:
        check_outputs(folder, {path.name})
        return code
    copy = Store(folder / "out.zarr")
    if not np.array_equal(copy.episode_ends, source.episode_ends):
        raise Fault(f"other episodes: {copy.episode_ends} instead of {source.episode_ends}")
    for key in (*source.image_keys, *source.task.vectors("state"), "action"):
        if not np.array_equal(copy.read(key), source.read(key)):
            raise Fault(f"{key} differs from the intact store")
    check_outputs(folder, {path.name, "out.zarr"})
    return code


def try_ckpt(path: Path, folder: Path, rng: random.Random, effect: str, source: Store) -> int:
    """`ddp import` and `ddp inspect`."""
    run("inspect", path)
    code, _ = run("import", path, "--out", folder / "native")
    if (folder / "executed").exists():
        raise Fault("executed code of the checkpoint")
    check_outputs(folder, {path.name} | (set() if code else {"native"}))
    return code


def try_policy(path: Path, folder: Path, rng: random.Random, effect: str, source: Store) -> int:
    """`ddp inspect`, and `ddp export` or an evaluation of one short episode."""
    run("inspect", path)
    if rng.random() < 0.85:
        code, _ = run("export", path, "--out", folder / "out")
        check_outputs(folder, {path.name} | (set() if code else {"out"}))
        return code
    return run("eval", path, "-n", 1, "--workers", 1, "--out", folder / "report.json")[0]


def try_json(path: Path, folder: Path, rng: random.Random, effect: str, source: Store) -> int:
    """A task, or hyper-parameters."""
    if rng.random() < 0.5:
        return run("inspect", source.path.parent / "demos.hdf5", "--task", path)[0]
    code, _ = run("train", "--task", "lift", "--data", source.path, "--config", path, "--runs", folder / "runs")
    return code or run("inspect", folder / "runs/lift")[0]


WORDS = [
    "inspect", "convert", "train", "eval", "rollout", "export", "import", "serve", "plot", "preview", "collect",
    "--help", "--json", "--task", "lift", "door", "--out", "x", "--steps", "0", "-1", "nan", "1e99", "--set", "lr=x",
    "n_layer=", "=", "--episodes", "999999999999", "--only", ":", "::0", "1:2:3:4", "--seed", "--workers", "--runs",
    "nowhere", "", " ", "é", "--device", "cuda:7", "tpu", "--sweep", "a=b", "--preset", "paper", "--to", "--filter",
    "--name", "../x", "a/b", ".", "--policy", "--minutes", "inf", "--last", "--until-ci", "--engine", "onnx", "-",
]  # fmt: skip


def try_command_line(folder: Path, rng: random.Random) -> int:
    """A command with random arguments, none of which names an existing input."""
    os.chdir(folder)
    command = rng.choice(["inspect", "convert", "eval", "rollout", "export", "import", "plot", "preview", "train"])
    words = [rng.choice(WORDS) for _ in range(rng.randint(0, 6))]
    if command == "train":  # never long enough to start
        words += ["--data", "nowhere.zarr"]
    code, _ = run(command, *words)
    check_outputs(folder, set())
    return code


KINDS: dict[str, tuple[Callable[[Path, random.Random], str], Callable[..., int]]] = {
    "hdf5": (damage_hdf5, try_recording),
    "zarr": (damage_folder, try_store),
    "lerobot": (damage_folder, try_recording),
    "ckpt": (damage_ckpt, try_ckpt),
    "checkpoint": (damage_folder, try_policy),
    "policy": (damage_folder, try_policy),
    "json": (damage_json, try_json),
    "replay buffer": (damage_folder, try_any_robot),
    "replay buffer 3": (damage_folder, try_any_robot),
    "aloha": (damage_aloha, try_any_robot),
    "aloha jpeg": (damage_aloha, try_any_robot),
    "recording v2.1": (damage_folder, try_any_robot),
    "recording v3.0": (damage_folder, try_any_robot),
}


def try_input(kind: str, valid: dict[str, Path], seed: int) -> int:
    """Makes the input `seed` of a kind and runs commands on it; returns the exit code of the last one."""
    rng = random.Random(f"{kind}-{seed}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "command line":
            return try_command_line(folder, rng)
        path = folder / valid[kind].name
        (shutil.copytree if valid[kind].is_dir() else shutil.copy)(valid[kind], path)
        damage, attempt = KINDS[kind]
        effect = damage(path, rng)
        return attempt(path, folder, rng, effect, Store(valid["zarr"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join([*KINDS, "command line"]))
    args = parser.parse_args()
    kinds, start = args.kinds.split(","), Path.cwd()
    tried, refused, faults = Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        valid = make_inputs(Path(name))
        for i in range(args.count):
            kind, seed = kinds[i % len(kinds)], args.seed + i
            tried[kind] += 1
            try:
                refused[kind] += try_input(kind, valid, seed) != 0
            except Fault as e:
                faults[kind] += 1
                print(f"FAULT {kind} --seed {seed} --count 1 --kinds {kind}: {e}", flush=True)
            finally:
                os.chdir(start)
            if (i + 1) % 100 == 0 or i + 1 == args.count:
                counts = [f"{k}: {tried[k]} inputs, {refused[k]} refused, {faults[k]} faults" for k in kinds]
                print(*counts, f"{i + 1} inputs, {sum(faults.values())} faults", sep="\n", flush=True)


if __name__ == "__main__":
    main()
