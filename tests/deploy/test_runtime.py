"""The runtime, as somebody uses it who has nothing else of ddp."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import look

from ddp_cli.deploy.runtime import ChunkRunner, Policy, PolicyError

ALONE = """
import sys
import numpy as np
from runtime import Policy, Stream

policy = Policy.load(sys.argv[1])
obs = dict(np.load(sys.argv[2]))
np.save(sys.argv[3], policy.act(obs, policy.noise(np.random.default_rng(5))))
print([name for name in ("torch", "ddp_cli", "onnx", "scipy") if name in sys.modules])
"""


def window(policy: Policy, first: int = 0) -> dict[str, np.ndarray]:
    frames = [look(policy, first + i) for i in range(policy.n_obs_steps)]
    return {key: np.stack([frame[key] for frame in frames]) for key in policy.obs}


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return Policy.load(policy_folder)


def test_it_runs_with_numpy_and_onnxruntime_alone(policy: Policy, policy_folder: Path, tmp_path: Path) -> None:
    """In a virtual environment that holds these two, and the copy of runtime.py that lies in the folder."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    for package in (np, onnxruntime):
        here = Path(package.__file__).parent
        (site / here.name).symlink_to(here)
        libraries = here.with_name(f"{here.name}.libs")
        if libraries.is_dir():
            (site / libraries.name).symlink_to(libraries)
    obs = window(policy)
    np.savez(tmp_path / "obs.npz", **obs)
    (tmp_path / "alone.py").write_text(ALONE)
    shutil.copy(policy_folder / "runtime.py", tmp_path)
    command = [
        tmp_path / "env/bin/python",
        tmp_path / "alone.py",
        policy_folder,
        tmp_path / "obs.npz",
        tmp_path / "a.npy",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""})
    assert done.stdout.strip() == "[]"
    expected = policy.act(obs, policy.noise(np.random.default_rng(5)))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


def test_importing_it_from_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, ddp_cli.deploy.runtime; print([m for m in ('torch', 'pydantic', 'robosuite') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_noise_decides_what_is_random(policy: Policy) -> None:
    obs, noise = window(policy), policy.noise(np.random.default_rng(1))
    one = policy.act(obs, noise)
    assert one.shape == (8, 7)
    assert one.dtype == np.float32
    assert np.abs(one).max() <= 1
    np.testing.assert_array_equal(policy.act(obs, noise), one)
    assert np.abs(policy.act(obs, noise + 1) - one).max() > 1e-4
    assert np.abs(policy.act(window(policy, 9), noise) - one).max() > 1e-6


def test_a_stream_executes_chunk_by_chunk(policy: Policy) -> None:
    """Each chunk is made of the last two observations; the first one stands for what was before."""
    frames = [look(policy, i) for i in range(9)]
    stream = ChunkRunner(policy, seed=3)
    actions = np.stack([stream.action(frame) for frame in frames])
    generator = np.random.default_rng(3)
    first = policy.act({k: np.stack([frames[0][k]] * 2) for k in policy.obs}, policy.noise(generator))
    second = policy.act({k: np.stack([frames[7][k], frames[8][k]]) for k in policy.obs}, policy.noise(generator))
    np.testing.assert_array_equal(actions, np.concatenate([first, second[:1]]))
    stream.reset(3)
    np.testing.assert_array_equal(stream.action(frames[0]), first[0])
    stream.reset(3)
    stream.chunk(frames[:2])
    with pytest.raises(PolicyError, match="nothing has been observed"):
        ChunkRunner(policy).chunk([])


def test_observations_that_do_not_fit_are_named(policy: Policy) -> None:
    obs = window(policy)
    image, pos = "agentview_image", "robot0_eef_pos"
    for change, message in (
        ({image: None}, "'agentview_image' is missing; the policy looks at agentview_image, "),
        ({image: obs[image][:1]}, r"'agentview_image' has shape \(1, 84, 84, 3\), expected \(2, 84, 84, 3\)"),
        ({image: obs[image] / 255}, "'agentview_image' is float64, expected uint8"),
        ({pos: obs[pos] * np.nan}, "'robot0_eef_pos' is not finite"),
        ({pos: np.full((2, 3), "x")}, "'robot0_eef_pos' is <U1, expected numbers"),
    ):
        wrong = {k: v for k, v in (obs | change).items() if v is not None}
        with pytest.raises(PolicyError, match=message):
            policy.act(wrong)
    with pytest.raises(PolicyError, match="the noise has shape"):
        policy.act(obs, np.zeros((1, 2, 3)))
    stream = ChunkRunner(policy, seed=0)
    with pytest.raises(PolicyError, match="missing"):
        stream.action({})
    frame = look(policy)
    with pytest.raises(PolicyError, match="missing"):
        stream.chunk([look(policy, 5), {}])
    np.testing.assert_array_equal(
        stream.action(frame), ChunkRunner(policy, seed=0).action(frame)
    )  # nothing was taken in


def test_a_folder_that_is_no_policy_is_named(policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="holds no exported policy"):
        Policy.load(tmp_path)
    folder = Path(shutil.copytree(policy_folder, tmp_path / "p"))
    graph = (folder / "policy.onnx").read_bytes()
    (folder / "policy.onnx").write_bytes(graph[: len(graph) // 2])
    with pytest.raises(PolicyError, match="is damaged"):
        Policy.load(folder)
    (folder / "policy.onnx").write_bytes(graph)
    spec = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(spec | {"format": 1}))
    with pytest.raises(PolicyError, match="of format 2. Export it again"):
        Policy.load(folder)
    (folder / "policy.json").write_text(json.dumps({k: v for k, v in spec.items() if k != "limits"}))
    with pytest.raises(PolicyError, match="is damaged: 'limits'"):
        Policy.load(folder)
