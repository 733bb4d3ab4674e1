from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import ddp, ok
from report.browser import launch_browser

from ddp_cli.data.store import Store

LENGTHS = (20, 30, 25, 22)
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>{{script}}"


@pytest.fixture(scope="module")  # while it is open, an event loop of Playwright runs, and others cannot
def browser() -> Iterator[Any]:
    with ExitStack() as stack:
        yield launch_browser(stack)


def write_recording(path: Path) -> None:
    """A replay buffer with two cameras: the brightness of `top` is 8 times the step, `wrist` is red."""
    rng, ends = np.random.default_rng(0), np.cumsum(LENGTHS)
    steps = np.concatenate([np.arange(n) for n in LENGTHS])
    top = np.broadcast_to((8 * steps)[:, None, None, None], (ends[-1], 24, 32, 3)).astype(np.uint8)
    wrist = np.zeros((ends[-1], 16, 16, 3), np.uint8)
    wrist[..., 0] = 220
    position = np.cumsum(rng.uniform(-0.1, 0.1, (ends[-1], 2)), axis=0).astype(np.float32)
    position[LENGTHS[0] : LENGTHS[0] + 15] = position[LENGTHS[0]]  # the second episode begins with a pause
    action = rng.uniform(-1, 1, (ends[-1], 2)).astype(np.float32)
    action[LENGTHS[0] : LENGTHS[0] + 15] = action[LENGTHS[0]]
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for key, value in {"top": top, "wrist": wrist, "pos": position, "action": action}.items():
        root.create_array(f"data/{key}", data=value)
    root.create_array("meta/episode_ends", data=ends)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of four episodes whose elements have hostile names."""
    folder = tmp_path_factory.mktemp("recording")
    write_recording(folder / "r.zarr")
    schema = {
        "rate": 10,
        "cameras": {"top": {"height": 24, "width": 32}, "wrist": {"height": 16, "width": 16}},
        "vectors": {"pos": {"width": 2, "names": [HOSTILE, "y"], "unit": "m"}},
        "action": [{"name": "goal", "width": 2, "names": ["x & y", '"><b>'], "unit": HOSTILE}],
    }
    (folder / "schema.json").write_text(json.dumps(schema))
    out = folder / "store.zarr"
    ok(ddp("convert", folder / "r.zarr", "--schema", folder / "schema.json", "--out", out, "--task", "reach"))
    return Store(out)


def evaluation(successes: list[bool], **values: Any) -> dict[str, Any]:
    """A report of `ddp eval` whose seeds count from 100."""
    episodes = [
        {"seed": 100 + i, "success": success, "held": success, "steps": 40 + i if success else 400, "chunk_ms": 3.0,
         "start": {"robot_pos": [0.0, 0.0, 1.0], "nut_pos": [0.1 * i, 0.2 - 0.01 * i, 0.8]}}
        for i, success in enumerate(successes)
    ]  # fmt: skip
    return {
        "checkpoint": "runs/square/a/checkpoints/step-00000100", "task": "square", "obs": "state", "step": 100,
        "sampler": "ddim", "inference_steps": 10, "engine": "onnx", "first_seed": 100, "seconds": 60.0,
        "chunk_ms": 3.0, "mean_steps": 42.0, "lost": [], "episodes": episodes, "until_ci": None, **values,
    }  # fmt: skip


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
