"""Actions are limited by one rule: in evaluation, in the runtime and its copy, by the server and in the proof."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ddp, refused
from deploy.exporting import random_policy
from deploy.test_server import serving

import ddp_cli
from ddp_cli.api import LoadedPolicy
from ddp_cli.core.checkpoint import save_checkpoint
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.deploy import export_check
from ddp_cli.deploy.client import Client, ServerError
from ddp_cli.deploy.export import ExportOptions, export_policy
from ddp_cli.deploy.exported_policy import load_exported_agent
from ddp_cli.deploy.runtime import ChunkRunner, Policy, PolicyError
from ddp_cli.errors import CheckpointError, DdpError
from ddp_cli.inference.agent import load_agent
from ddp_cli.inference.onnx_policy import obs_keys
from ddp_cli.inference.policy_limits import action_limits

LOW, HIGH = [-0.2, -0.1, 0.9], [0.1, 0.2, 1.1]
META = {"render": "fast", "action": {"convention": "absolute"}, "action_range": {"low": LOW, "high": HIGH}}
POSE = np.array([0.0, 0.0, 1.0, 0, 1, 0, 1, 0, 0, 0.0])
DEGENERATE = 100.0  # width of noise that leads to parallel rows


def absolute_policy(**settings: object) -> DiffusionPolicy:
    """A policy whose positions are not normalized: most of them are outside of the box."""
    policy = random_policy(obs="state", actions="absolute", **settings)
    policy.normalizer.get_buffer("action_scale").fill_(1.0)
    policy.normalizer.get_buffer("action_offset").zero_()
    return policy


def random_obs(policy: DiffusionPolicy, count: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    low_dim = policy.config.low_dim
    return {key: torch.randn(count, 2, low_dim[key], generator=generator) for key in obs_keys(policy)}


@pytest.fixture(scope="module")
def absolute_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy, out = absolute_policy(), tmp_path_factory.mktemp("absolute") / "policy"
    export_policy(policy, META, ExportOptions(), out, lambda: random_obs(policy))
    return out


@pytest.fixture
def observation(absolute_folder: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=entry["shape"]) for key, entry in Policy.load(absolute_folder).obs.items()}


def repeat(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An observation as the history of a policy."""
    return {key: np.stack([value] * 2) for key, value in observation.items()}


def find_noise(policy: Policy, observation: dict[str, np.ndarray], degenerate: bool) -> np.ndarray:
    """Noise for which the first predicted rotation is degenerate, or is not."""
    for seed in range(1000):
        noise = (DEGENERATE if degenerate else 1.0) * policy.sample_noise(np.random.default_rng(seed))
        a, b = policy.predict(repeat(observation), noise)[0, 3:9].astype(float).reshape(2, 3)
        if (np.linalg.norm(np.cross(a, b)) < 1e-3) == degenerate:
            return noise
    raise AssertionError


def test_the_runtime_limits_absolute_actions(absolute_folder: Path, observation: dict[str, np.ndarray]) -> None:
    policy = Policy.load(absolute_folder)
    noise = find_noise(policy, observation, degenerate=False)
    predicted, actions = policy.predict(repeat(observation), noise), policy.act(repeat(observation), noise)
    assert (predicted[:, :3] < np.array(LOW) - 0.05).any()  # outside of the box
    assert actions.dtype == np.float32
    np.testing.assert_allclose(
        actions[:, :3], predicted[:, :3].clip(np.array(LOW) - 0.05, np.array(HIGH) + 0.05), atol=1e-6
    )
    rows = actions[:, 3:9].reshape(-1, 2, 3)
    np.testing.assert_allclose(rows @ rows.transpose(0, 2, 1), [np.eye(2)] * 8, atol=1e-6)
    np.testing.assert_allclose(
        rows[:, 0], predicted[:, 3:6] / np.linalg.norm(predicted[:, 3:6], axis=1)[:, None], atol=1e-6
    )


def test_a_degenerate_rotation_is_held_or_an_error(absolute_folder: Path, observation: dict[str, np.ndarray]) -> None:
    policy = Policy.load(absolute_folder)
    noise = find_noise(policy, observation, degenerate=True)
    np.testing.assert_array_equal(policy.act(repeat(observation), noise, POSE)[0, 3:9], POSE[3:9])
    with pytest.raises(PolicyError, match="degenerate rotation .* no previous one to hold"):
        policy.act(repeat(observation), noise)
    for invalid in (np.zeros(10), POSE[:7], POSE * np.nan):
        with pytest.raises(PolicyError, match="previous_action = .* is not an action"):
            policy.act(repeat(observation), noise, invalid)


class ScriptedPolicy(Policy):
    """Predicts the given chunks in turn."""

    chunks: list[np.ndarray]

    def predict(self, obs: object, noise: object = None, prefix: object = None) -> np.ndarray:
        return self.chunks.pop(0)


def make_chunk(*rotations: list[float]) -> np.ndarray:
    return np.array([[0.0, 0.0, 1.0, *rotation, 1.0] for rotation in rotations], np.float32)


NONE, FIRST, SECOND = [0.0] * 6, [1.0, 0, 0, 0, 1, 0], [0, 1.0, 0, 0, 0, 1]


def test_a_runner_holds_the_rotation_of_the_previous_action(
    absolute_folder: Path, observation: dict[str, np.ndarray]
) -> None:
    policy = ScriptedPolicy(absolute_folder)
    runner = ChunkRunner(policy)
    policy.chunks = [make_chunk(FIRST, SECOND), make_chunk(NONE, FIRST), make_chunk(NONE, NONE)]
    rotations = [runner.action(observation)[3:9].tolist() for _ in range(4)]
    assert rotations == [FIRST, SECOND, SECOND, FIRST]
    assert runner.chunk([observation])[:, 3:9].tolist() == [FIRST, FIRST]
    policy.chunks = [make_chunk(SECOND, FIRST), make_chunk(NONE, SECOND)]
    runner.action(observation)
    assert runner.chunk([observation])[0, 3:9].tolist() == SECOND  # only one action of the chunk was executed
    policy.chunks = [make_chunk(NONE, FIRST), make_chunk(FIRST, FIRST)]
    runner.reset()
    with pytest.raises(PolicyError, match="no previous one to hold"):
        runner.action(observation)
    assert runner.action(observation)[3:9].tolist() == FIRST


def test_changing_a_returned_action_changes_no_other(absolute_folder: Path, observation: dict[str, np.ndarray]) -> None:
    policy = ScriptedPolicy(absolute_folder)
    runner = ChunkRunner(policy)
    policy.chunks = [make_chunk(FIRST), make_chunk(NONE), make_chunk(NONE)]
    runner.action(observation)[:] = 9.0
    runner.chunk([observation])[:] = 9.0
    assert runner.action(observation)[3:9].tolist() == FIRST


def test_the_server_holds_rotations_per_client(absolute_folder: Path, observation: dict[str, np.ndarray]) -> None:
    policy = ScriptedPolicy(absolute_folder)
    policy.chunks = [make_chunk(FIRST), make_chunk(NONE), make_chunk(NONE), make_chunk(SECOND), make_chunk(NONE)]
    with serving(policy, sync=True) as (address, _), Client(address) as first, Client(address) as second:
        assert first.action(observation).shape == (10,)
        assert first.action(observation)[3:9].tolist() == FIRST
        with pytest.raises(ServerError, match="no previous one to hold"):
            second.action(observation)
        assert second.action(observation)[3:9].tolist() == SECOND
        assert first.action(observation)[3:9].tolist() == FIRST


COPIED_SCRIPT = """
import sys
sys.modules["ddp_cli"] = None  # as on a robot: importing it fails
{import_line}
import numpy as np
policy = runtime.Policy.load(sys.argv[1])
obs = {{key: np.zeros((2, *entry["shape"])) for key, entry in policy.obs.items()}}
noise = 100 * policy.sample_noise(np.random.default_rng(0))
print(policy.act(obs, noise, np.array([0, 0, 1, 0, 1, 0, 1, 0, 0, 0])).tolist())
"""


@pytest.mark.parametrize("import_line", ["import runtime", "import robot.runtime as runtime"])
def test_a_copy_of_the_runtime_limits_actions_by_its_copy_of_the_rule(
    import_line: str, absolute_folder: Path, tmp_path: Path
) -> None:
    """Also inside a package, and where another module is called action_limits."""
    copies = tmp_path / "robot" if "robot" in import_line else tmp_path
    copies.mkdir(exist_ok=True)
    for name in ("runtime.py", "action_limits.py", "resize.py"):
        shutil.copy(absolute_folder / name, copies)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "action_limits.py").write_text("")
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'other')!r}); " + COPIED_SCRIPT.format(
        import_line=import_line
    )
    command = [sys.executable, "-c", script, str(absolute_folder)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    policy = Policy.load(absolute_folder)
    obs = {key: np.zeros((2, *entry["shape"])) for key, entry in policy.obs.items()}
    noise = DEGENERATE * policy.sample_noise(np.random.default_rng(0))
    assert json.loads(result.stdout) == policy.act(obs, noise, POSE).tolist()


def test_the_proof_covers_limited_and_held_actions(absolute_folder: Path) -> None:
    limits = json.loads((absolute_folder / "proof.json").read_text())["limits"]
    assert limits["actions"] == 3 * 3 * 8  # observations, widths of noise, steps
    assert limits["limited"] > 36
    assert 0 < limits["held"] < limits["limited"]
    assert "72 actions limited exactly as in evaluation" in (absolute_folder / "README.md").read_text()


def test_the_proof_fails_if_the_runtime_only_clips(absolute_folder: Path) -> None:
    """The runtime of older versions: no projected rotations."""

    class ClippingPolicy(Policy):
        def act(self, obs: dict, noise: np.ndarray | None = None, previous_action: object = None) -> np.ndarray:
            low, high = (
                np.array([np.nan if x is None else x for x in self.spec["limits"][k]]) for k in ("low", "high")
            )
            return np.fmin(np.fmax(self.predict(obs, noise), low), high).astype(np.float32)

    policy = absolute_policy()
    with pytest.raises(DdpError, match="limits its actions differently from evaluation"):
        export_check.compare_limits(ClippingPolicy(absolute_folder), action_limits(policy, META), random_obs(policy))


def test_the_proof_fails_if_policy_json_has_other_limits(absolute_folder: Path) -> None:
    policy, exported = absolute_policy(), Policy.load(absolute_folder)
    limits = action_limits(policy, META)
    export_check.compare_limits(exported, limits, random_obs(policy))
    wider = dataclasses.replace(limits, high=(*limits.high[:2], limits.high[2] + 0.1, *limits.high[3:]))
    with pytest.raises(DdpError, match="differently from evaluation"):
        export_check.compare_limits(exported, wider, random_obs(policy))


def test_every_way_to_run_a_policy_has_the_same_limits(absolute_folder: Path, tmp_path: Path) -> None:
    policy = absolute_policy()
    save_checkpoint(tmp_path / "checkpoint", policy.config, policy.state_dict(), META, None)
    agents = load_agent(tmp_path / "checkpoint", "cpu", None, None), load_exported_agent(absolute_folder)
    assert agents[0].action_limits == agents[1].action_limits == action_limits(policy, META)
    policies = [ddp_cli.load_policy(path) for path in (tmp_path / "checkpoint", absolute_folder)]
    obs = {key: np.zeros((2, *shape)) for key, shape in policies[0].obs_shapes.items()}
    outcomes = set()
    for seed in range(30):
        results = [act_or_refuse(loaded, obs, seed) for loaded in policies]
        np.testing.assert_array_equal(*results)
        outcomes.add(isinstance(results[0], str))
        if isinstance(results[0], str):
            assert "no previous one to hold" in results[0]
        else:
            assert (results[0][:, :3] >= np.array(LOW) - 0.05 - 1e-6).all()
            assert (results[0][:, :3] <= np.array(HIGH) + 0.05 + 1e-6).all()
    assert outcomes == {True, False}


def act_or_refuse(policy: LoadedPolicy, obs: dict, seed: int) -> np.ndarray | str:
    """The actions, or the message of the error."""
    policy.reset(seed)
    try:
        return policy.act(obs)
    except DdpError as e:
        return e.message


def test_without_a_recorded_range_the_normalizer_tells_it() -> None:
    policy = absolute_policy()
    assert action_limits(policy, {}).low[:3] == (-1.05,) * 3
    for damaged in ({"low": LOW}, {"low": LOW, "high": ["x"] * 3}, {"low": HIGH, "high": LOW}, [1]):
        with pytest.raises(CheckpointError, match=r"action_range in config\.json is not a range"):
            action_limits(policy, {"action_range": damaged})


def test_edited_limits_hold(absolute_folder: Path, tmp_path: Path) -> None:
    """Whoever wants a smaller box for a robot writes it into policy.json."""
    folder = Path(shutil.copytree(absolute_folder, tmp_path / "policy"))
    spec = json.loads((folder / "policy.json").read_text())
    spec["limits"]["high"][2] = 1.0
    (folder / "policy.json").write_text(json.dumps(spec))
    assert load_exported_agent(folder).action_limits.high[:3] == pytest.approx((0.15, 0.25, 1.0))
    spec["limits"]["high"][2] = 0.0
    (folder / "policy.json").write_text(json.dumps(spec))
    assert "policy.json' is damaged: limits from" in refused(ddp("serve", folder))
