"""The measurements for a GPU, in a small size on the CPU, where no simulator can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NO_SIMULATOR = "import sys; sys.modules.update(dict.fromkeys(('robosuite', 'mujoco', 'gymnasium')))\n"


def run_part(number: int, out: Path, *options: object) -> dict[str, Any]:
    """The results of a part, which must succeed."""
    (out / "site").mkdir(parents=True, exist_ok=True)
    (out / "site/sitecustomize.py").write_text(NO_SIMULATOR)
    path = os.pathsep.join(map(str, (out / "site", ROOT, ROOT / "tests/data")))
    command = [sys.executable, ROOT / "tests/bench/gpu.py", "--part", number, "--small", "--device", "cpu"]
    done = subprocess.run(
        [*map(str, command), "--out", str(out), *map(str, options)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / f"gpu-part-{number}.json").read_text())


def test_all_parts_run_without_a_simulator_and_training_continues(tmp_path: Path) -> None:
    checks = run_part(1, tmp_path)
    passed = {name: value["passed"] for name, value in checks.items() if "passed" in value}
    assert len(passed) == 9
    assert all(passed.values())

    speed = run_part(2, tmp_path)
    assert speed["training step, CUDA graph"]["ddp_s"] > 0
    assert {"ddpm 100, plain", "ddpm 100, torch", "ddim 1, torch"} <= speed["time per action chunk [ms]"].keys()

    training = run_part(3, tmp_path, "--steps", 6, "--minutes", 0)["training of the paper preset"]
    assert (training["from step"], training["to step"], training["of"]) == (0, 0, 6)
    training = run_part(3, tmp_path, "--steps", 6)["training of the paper preset"]
    assert (training["from step"], training["to step"]) == (0, 6)
