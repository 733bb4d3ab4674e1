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
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from ddp_cli.cli import app
from ddp_cli.commands.options import sample_demos
from ddp_cli.data.store import Store

N_DEMOS = 2
NEUTRAL, SEMANTIC, ANY = "neutral", "semantic", "any"
"""What a change does: nothing to the data, something that a replay must notice, or anything."""


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
    from core.published_recipe import state_dict
    from core.test_safe_unpickle import published_cfg, save_ckpt

    from ddp_cli.config import PolicyConfig

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
    }  # fmt: skip


# -- damage ---------------------------------------------------------------------------------------


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Truncates, empties, extends, removes or changes a file."""
    kind, data = rng.choice(["truncate", "empty", "remove", "flip", "flip", "zero", "append"]), path.read_bytes()
    if kind == "remove":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == "append":
        path.write_bytes(data + rng.randbytes(rng.randint(1, 100)))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            if changed:
                start = rng.randrange(len(changed))
                length = 1 if kind == "flip" else rng.randint(1, 2000)
                changed[start : start + length] = (
                    rng.randbytes(1) if kind == "flip" else bytes(len(changed[start : start + length]))
                )
        path.write_bytes(changed)
    return ANY


def damage_folder(folder: Path, rng: random.Random) -> str:
    """Damages a file of a folder; JSON files often by their values."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    small = [p for p in files if p.suffix == ".json"]
    path = rng.choice(small) if small and rng.random() < 0.5 else rng.choice(files)
    return damage_json(path, rng) if path.suffix == ".json" and rng.random() < 0.7 else damage_bytes(path, rng)


VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**70, 1e308, 0.5, "", "x", "lift", "../x", "\x00", "é" * 300, [], [1], [None], {}, {"a": 1},
    [[1, 2]], float("nan"),
]  # fmt: skip


def damage_json(path: Path, rng: random.Random) -> str:
    """Replaces, removes or adds a value somewhere in a JSON file."""
    value = json.loads(path.read_text())
    spots: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in list(items):
            spots.append((node, key))
            collect(child)

    collect(value)
    for _ in range(rng.randint(1, 2)):
        node, key = rng.choice(spots)
        kind = rng.random()
        if kind < 0.6:
            node[key] = rng.choice(VALUES)
        elif isinstance(node, dict):
            if kind < 0.85:
                node.pop(key, None)
            else:
                node[rng.choice(["x", "format", "shape", "name"])] = rng.choice(VALUES)
    path.write_text(json.dumps(value))
    return ANY


def damage_hdf5(path: Path, rng: random.Random) -> str:
    """Damages the bytes, the structure, or the meaning of a file of demonstrations."""
    kind = rng.random()
    if kind < 0.3:
        return damage_bytes(path, rng)
    with h5py.File(path, "r+") as f:
        demo = f[f"data/demo_{rng.randrange(N_DEMOS)}"]
        return change_meaning(f, rng) if kind < 0.6 else change_structure(f, demo, rng)


def change_meaning(f: h5py.File, rng: random.Random) -> str:
    """Changes all actions, or all times, so that they are no longer those of the recording."""
    change = rng.choice(["scale", "rotate", "shift", "gripper", "swap", "sign", "noise"])
    for demo in f["data"].values():
        actions = demo["actions"][:]
        if change == "scale":
            actions[:, :3] *= rng.choice([0.4, 0.6, 2.0])
        elif change == "rotate":
            actions[:, :2] = actions[:, 1::-1] * [-1, 1]
        elif change == "shift":
            actions = np.roll(actions, rng.choice([-4, 4, 8]), axis=0)
        elif change == "gripper":
            actions[:, 6] *= -1
        elif change == "swap":
            actions[:, [0, 2]] = actions[:, [2, 0]]
        elif change == "sign":
            actions[:, rng.choice([0, 2])] *= -1
        else:
            actions[:, :3] += np.random.default_rng(rng.randrange(1000)).normal(0, 0.7, actions[:, :3].shape)
        demo["actions"][:] = actions
    return SEMANTIC


def change_structure(f: h5py.File, demo: h5py.Group, rng: random.Random) -> str:
    """Replaces an array, an attribute or a group."""
    key = rng.choice(["states", "actions", "states", "actions", "obs/x", "obs/agentview_image"])
    kind = rng.choice(["array", "delete", "attribute", "data attribute", "link", "pad", "rename", "mask"])
    if kind == "attribute":
        demo.attrs[rng.choice(["num_samples", "model", "model_file", "seed"])] = rng.choice(
            [0, -1, 5, "x", 1.5, "<a/>"]
        )
    elif kind == "data attribute":
        name = rng.choice(["env_args", "env", "env_info", "repository_version", "identity"])
        f["data"].attrs[name] = rng.choice(["{}", "[", '{"env_name": 3}', '{"env_name": "Door"}', 5, "Lift", "null"])
    elif kind == "rename":
        f["data"].move(demo.name.rpartition("/")[2], rng.choice(["demo_x", "demo_007", "a/b", "episode 1"]))
    elif kind == "mask":
        f["mask/train"] = rng.choice([np.array([b"demo_0"]), np.zeros(3), np.array([b"x"]), "demo_0"])
    elif kind == "pad" and key in demo:
        values = demo[key][:]
        del demo[key]
        demo[key] = np.concatenate([values, values[: rng.randint(1, 5)]])
    else:
        if key in demo:
            del demo[key]
        if kind == "link":
            demo[key] = rng.choice(
                [h5py.SoftLink("/nowhere"), h5py.ExternalLink("x.hdf5", "/y"), h5py.SoftLink("/data")]
            )
        elif kind == "array":
            shape = tuple(rng.choice([0, 1, 7, 32, 40]) for _ in range(rng.randint(0, 3)))
            value = rng.choice([0.0, 1.0, np.nan, np.inf, 1e300])
            with np.errstate(all="ignore"):
                demo[key] = np.full(shape, value).astype(rng.choice(["f8", "f4", "i4", "u1", "S3", "?"]))
    return ANY


def damage_ckpt(path: Path, rng: random.Random) -> str:
    """Damages a checkpoint, or puts a pickle that runs a command in its place."""
    if rng.random() < 0.15:
        import torch

        class Command:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.system, (f"touch {path.parent / 'executed'}",)

        torch.save({"cfg": Command(), "state_dicts": {"model": Command()}}, path)
        return ANY
    return damage_bytes(path, rng)


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
    for kind in kinds:
        print(f"{kind}: {tried[kind]} inputs, {refused[kind]} refused, {faults[kind]} faults")
    print(f"{sum(tried.values())} inputs, {sum(faults.values())} faults")


if __name__ == "__main__":
    main()
