"""The runtime, as used without the rest of the package."""

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
from conftest import ddp, random_observation, refused

from ddp_cli.deploy.runtime import PROVIDERS, ChunkRunner, Policy, PolicyError

STANDALONE_SCRIPT = """
import sys, time
import numpy as np
from runtime import Policy, ChunkRunner
from streaming import ActionStream

policy = Policy.load(sys.argv[1])
obs = dict(np.load(sys.argv[2]))
np.save(sys.argv[3], policy.act(obs, policy.sample_noise(np.random.default_rng(5))))
assert ChunkRunner(policy, seed=5).chunk([{k: v[i] for k, v in obs.items()} for i in range(2)]).shape == (8, 7)
with ActionStream.from_policy(policy, waits=True) as stream:
    stream.observe({k: v[0] for k, v in obs.items()})
    stream.request().result(60)
    while stream.stats().chunks < 4:  # the loop of docs/robots.md
        stream.observe({k: v[1] for k, v in obs.items()})
        assert stream.action().shape == (7,)
        time.sleep(stream.period)
print([name for name in ("torch", "ddp_cli", "onnx", "scipy") if name in sys.modules])
"""


def random_history(policy: Policy, seed: int = 0) -> dict[str, np.ndarray]:
    steps = [random_observation(policy, seed + i) for i in range(policy.n_obs_steps)]
    return {key: np.stack([step[key] for step in steps]) for key in policy.obs}


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return Policy.load(policy_folder)


@pytest.fixture(scope="module")
def small_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with numpy and onnxruntime alone."""
    env = tmp_path_factory.mktemp("small") / "env"
    venv.create(env, with_pip=False, symlinks=True)
    site_packages = next((env / "lib").glob("python*/site-packages"))
    for package in (np, onnxruntime):
        folder = Path(package.__file__).parent
        (site_packages / folder.name).symlink_to(folder)
        libraries = folder.with_name(f"{folder.name}.libs")
        if libraries.is_dir():
            (site_packages / libraries.name).symlink_to(libraries)
    return env / "bin/python"


def test_it_runs_with_numpy_and_onnxruntime_alone(
    policy: Policy, policy_folder: Path, small_python: Path, tmp_path: Path
) -> None:
    """With the copies of the exported Python files."""
    obs = random_history(policy)
    np.savez(tmp_path / "obs.npz", **obs)
    (tmp_path / "standalone.py").write_text(STANDALONE_SCRIPT)
    for name in ("runtime.py", "action_limits.py", "resize.py", "streaming.py"):
        shutil.copy(policy_folder / name, tmp_path)
    command = [small_python, tmp_path / "standalone.py", policy_folder, tmp_path / "obs.npz", tmp_path / "a.npy"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""})
    assert result.stdout.strip() == "[]"
    expected = policy.act(obs, policy.sample_noise(np.random.default_rng(5)))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


def test_the_device_check_runs_alone_and_names_damaged_files(
    policy_folder: Path, small_python: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(policy_folder, tmp_path / "policy"))
    command = [small_python, folder / "device_check.py", "--seconds", "1"]

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", env={"PATH": ""})

    result = check()
    assert result.returncode == 0, result.stderr
    assert "files          9 files are those that were exported" in result.stdout
    assert "20 steps at 20 Hz" in result.stdout
    command[-1] = "nan"
    assert "invalid seconds value: 'nan'" in check().stderr
    command[:] = [small_python, shutil.copy(folder / "device_check.py", tmp_path), folder]
    assert check().stderr.startswith("error: no module 'runtime'. Leave this file in its exported folder")
    command[:] = [small_python, folder / "device_check.py"]
    (folder / "encoder.onnx").write_bytes(b"")
    result = check()
    assert (result.returncode, result.stdout) == (1, "")
    assert f"error: '{folder / 'encoder.onnx'}' is damaged" in result.stderr
    (folder / "encoder.onnx").unlink()
    assert f"error: '{folder / 'encoder.onnx'}' is missing" in check().stderr


def test_importing_it_from_the_package_loads_no_heavy_libraries() -> None:
    code = (
        "import sys, ddp_cli.deploy.runtime; print([m for m in ('torch', 'pydantic', 'robosuite') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_actions_depend_on_observations_and_noise_alone(policy: Policy) -> None:
    obs, noise = random_history(policy), policy.sample_noise(np.random.default_rng(1))
    actions = policy.act(obs, noise)
    assert actions.shape == (8, 7)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    np.testing.assert_array_equal(policy.act(obs, noise), actions)
    assert np.abs(policy.act(obs, noise + 1) - actions).max() > 1e-4
    assert np.abs(policy.act(random_history(policy, 9), noise) - actions).max() > 1e-6


def test_a_chunk_runner_executes_chunk_by_chunk(policy: Policy) -> None:
    """Each chunk is predicted from the last two observations; the first observation is repeated."""
    steps = [random_observation(policy, i) for i in range(9)]
    runner = ChunkRunner(policy, seed=3)
    actions = np.stack([runner.action(step) for step in steps])
    generator = np.random.default_rng(3)
    first = policy.act({k: np.stack([steps[0][k]] * 2) for k in policy.obs}, policy.sample_noise(generator))
    second = policy.act({k: np.stack([steps[7][k], steps[8][k]]) for k in policy.obs}, policy.sample_noise(generator))
    np.testing.assert_array_equal(actions, np.concatenate([first, second[:1]]))
    runner.reset(3)
    np.testing.assert_array_equal(runner.action(steps[0]), first[0])
    runner.reset(3)
    runner.chunk(steps[:2])
    with pytest.raises(PolicyError, match="nothing has been observed"):
        ChunkRunner(policy).chunk([])


def test_invalid_observations_are_named(policy: Policy) -> None:
    obs = random_history(policy)
    image, pos = "agentview_image", "robot0_eef_pos"
    for change, message in (
        ({image: None}, "'agentview_image' is missing; the policy observes agentview_image, "),
        ({image: obs[image][:1]}, r"'agentview_image' has shape \(1, 84, 84, 3\), expected \(2, 84, 84, 3\)"),
        ({image: obs[image] / 255}, "'agentview_image' is float64, expected uint8"),
        ({pos: obs[pos] * np.nan}, "'robot0_eef_pos' is not finite"),
        ({pos: np.full((2, 3), "x")}, "'robot0_eef_pos' is <U1, expected numbers"),
    ):
        invalid = {k: v for k, v in (obs | change).items() if v is not None}
        with pytest.raises(PolicyError, match=message):
            policy.act(invalid)
    with pytest.raises(PolicyError, match="the noise has shape"):
        policy.act(obs, np.zeros((1, 2, 3)))


def test_invalid_observations_do_not_change_a_chunk_runner(policy: Policy) -> None:
    runner = ChunkRunner(policy, seed=0)
    with pytest.raises(PolicyError, match="missing"):
        runner.action({})
    with pytest.raises(PolicyError, match="missing"):
        runner.chunk([random_observation(policy, 5), {}])
    step = random_observation(policy)
    np.testing.assert_array_equal(runner.action(step), ChunkRunner(policy, seed=0).action(step))


def test_folders_without_a_usable_policy_are_named(policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"holds no exported policy: policy\.json is missing"):
        Policy.load(tmp_path)
    folder = Path(shutil.copytree(policy_folder, tmp_path / "p"))
    spec = json.loads((folder / "policy.json").read_text())
    for content, message in (
        ("{", r"policy\.json' is damaged: Expecting"),
        ("[]", "of format 2. Export it again"),
        ("[1]", r"policy\.json' is damaged"),
        (json.dumps(spec | {"format": 1}), "of format 2. Export it again"),
        (json.dumps({k: v for k, v in spec.items() if k != "limits"}), r"policy\.json' is damaged: it has no 'limits'"),
        (json.dumps(spec | {"limits": {"low": [-1], "high": [1]}}), "limits of 1 and 1 values"),
        (json.dumps(spec | {"noise": [1, 4, 7]}), r"policy\.onnx' does not fit policy\.json.*: noise differ"),
        (json.dumps(spec | {"n_action_steps": 5}), "belongs to another policy: action differ"),
        (json.dumps(spec | {"obs": {}}), "another policy: agentview_image, robot0_eef_pos, "),
    ):
        (folder / "policy.json").write_text(content)
        with pytest.raises(PolicyError, match=message):
            Policy.load(folder)


@pytest.mark.parametrize("has_hash", [True, False])
def test_a_damaged_graph_is_named(has_hash: bool, policy_folder: Path, tmp_path: Path) -> None:
    """Folders of older versions record no hash."""
    folder = Path(shutil.copytree(policy_folder, tmp_path / "p"))
    if not has_hash:
        spec = json.loads((folder / "policy.json").read_text())
        del spec["sha256"]
        (folder / "policy.json").write_text(json.dumps(spec))
        Policy.load(folder)
    graph = (folder / "policy.onnx").read_bytes()
    for content in (graph[: len(graph) // 2], b"", (folder / "encoder.onnx").read_bytes()):
        (folder / "policy.onnx").write_bytes(content)
        with pytest.raises(PolicyError, match=r"policy\.onnx' (is damaged|is not the graph|does not fit)"):
            Policy.load(folder)


def test_a_graph_with_other_weights_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(policy_folder, tmp_path / "p"))
    graph = bytearray((folder / "policy.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (folder / "policy.onnx").write_bytes(graph)
    with pytest.raises(PolicyError, match=r"policy\.onnx' is not the graph that was exported with policy\.json"):
        Policy.load(folder)


def test_providers_that_are_not_there_are_refused(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Policy.load(policy_folder, provider="cpu").n_action_steps == 8
    with pytest.raises(PolicyError, match=r"no provider 'tensorrt' here; available: cpu"):
        Policy.load(policy_folder, provider="tensorrt")
    for command in (["serve", policy_folder], ["run", policy_folder, "--robot", "mock"]):
        assert "no provider 'openvino' here" in refused(ddp(*command, "--provider", "openvino"))
    # In a build that contains a provider, its libraries may still be missing: ONNX Runtime uses the CPU then.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    with pytest.raises(PolicyError, match="'cuda' of ONNX Runtime cannot be loaded"):
        Policy.load(policy_folder, provider="cuda")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Exception while reading network\nnode not found")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(PolicyError, match=r"'cuda' of ONNX Runtime cannot run '.*onnx': node not found\. Use cpu"):
        Policy.load(policy_folder, provider="cuda")
    with pytest.raises(PolicyError, match="is damaged: Exception while reading network Export the policy again"):
        Policy.load(policy_folder)
