"""ONNX graphs compute what the checkpoint computes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import TINY
from deploy.exporting import export_checkpoint, random_policy

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.data.store import Store
from ddp_cli.deploy.example_observations import observations_from_store, random_observations
from ddp_cli.deploy.export import ExportOptions, export_policy
from ddp_cli.deploy.export_check import TOLERANCES
from ddp_cli.deploy.exported_policy import load_exported_agent, open_exported_policy
from ddp_cli.errors import DdpError
from ddp_cli.inference.agent import PolicyAgent
from ddp_cli.inference.onnx_policy import obs_keys
from ddp_cli.presets import train_config
from ddp_cli.task_file import task_from_json

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampler": "ddpm", "num_inference_steps": 4},
        {"sampler": "dpm", "num_inference_steps": 4},
        {"prediction_type": "sample", "sampler": "ddpm", "num_inference_steps": 3, "clip_sample": False},
        {"obs_as_cond": False, "sampler": "ddpm", "num_inference_steps": 3},
        {"obs_as_cond": False, "time_as_cond": False},
        {"pred_action_steps_only": True},
        {"n_cond_layers": 1, "causal_attn": False},
        {"obs": "state"},
        {"fusion": 16, "obs": "state"},
        {"actions": "absolute", "obs": "state"},
    ],
    ids=str,
)
def test_the_graph_equals_torch_for_every_architecture(settings: dict, lift_store: Store, tmp_path: Path) -> None:
    """From observations and noise to actions, with all denoising steps, for a batch."""
    policy = random_policy(**settings)
    obs = observations_from_store(obs_keys(policy), lift_store, 2, count=3)
    export_policy(policy, {"render": "fast"}, ExportOptions(), tmp_path / "policy", lambda: obs)
    spec = open_exported_policy(tmp_path / "policy").spec
    expected = policy.predict_action(obs, torch.Generator().manual_seed(4))["action"].numpy()
    generator = torch.Generator().manual_seed(4)
    n_tensors, *shape = spec["noise"]
    noise = np.stack([torch.randn(3, *shape, generator=generator).numpy() for _ in range(n_tensors)])
    session = onnxruntime.InferenceSession(tmp_path / "policy/policy.onnx")
    (actions,) = session.run(None, {k: v.contiguous().numpy() for k, v in obs.items()} | {"noise": noise})
    assert actions.shape == (3, 8, policy.config.action_dim)
    np.testing.assert_allclose(actions, expected, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"sampler": "ddpm", "num_inference_steps": 4}, {"obs": "state"}])
def test_checkpoint_and_export_act_bit_exactly_on_a_cpu(settings: dict, lift_store: Store, tmp_path: Path) -> None:
    """A rounding difference in a contact can change the outcome of an episode."""
    policy, rng = random_policy(**settings), np.random.default_rng(0)
    obs = observations_from_store(obs_keys(policy), lift_store, 2, count=3)
    export_policy(policy, {"render": "fast"}, ExportOptions(), tmp_path / "policy", lambda: obs)
    torch.set_num_threads(1)  # as in evaluation
    agents = PolicyAgent(policy), load_exported_agent(tmp_path / "policy")
    steps = [{k: lift_store.read(k)[row] for k in obs_keys(policy)} for row in rng.integers(0, 70, 8)]
    for agent in agents:
        agent.reset(7)
    for history in itertools.pairwise(steps):
        expected, actions = (agent.act(history) for agent in agents)
        np.testing.assert_array_equal(expected, actions)


def test_encoder_and_denoiser_graphs_suffice_for_ddim(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    """DDIM (Song et al. 2021, eq. 12), from encoder.onnx, denoiser.onnx and policy.json alone."""
    export_checkpoint(checkpoint, lift_store, tmp_path / "policy")
    policy, _ = load_policy(checkpoint)
    spec = json.loads((tmp_path / "policy/policy.json").read_text())
    obs = observations_from_store(list(spec["obs"]), lift_store, 2, count=3)
    expected = policy.predict_action(obs, torch.Generator().manual_seed(4))["action_pred"].numpy()
    encoder, denoiser = (onnxruntime.InferenceSession(tmp_path / f"policy/{n}.onnx") for n in ("encoder", "denoiser"))
    (features,) = encoder.run(None, {k: v.contiguous().numpy() for k, v in obs.items()})
    assert features.shape == (3, 2, spec["features"])
    x = torch.randn(3, 10, 7, generator=torch.Generator().manual_seed(4)).numpy()
    alphas = np.array(spec["alphas_cumprod"])
    assert spec["timesteps"] == [99, 49]
    for timestep, previous in zip(spec["timesteps"], [49, None], strict=True):
        inputs = {"trajectory": x, "timesteps": np.full(3, timestep), "features": features}
        (epsilon,) = denoiser.run(None, inputs)
        clean = np.clip((x - np.sqrt(1 - alphas[timestep]) * epsilon) / np.sqrt(alphas[timestep]), -1, 1)
        alpha = alphas[previous] if previous is not None else 1.0
        x = (np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * epsilon).astype(np.float32)
    scale, offset = (np.array(spec["action_normalizer"][n]) for n in ("scale", "offset"))
    np.testing.assert_allclose((x - offset) / scale, expected, atol=1e-4)


def test_observations_may_have_the_names_of_parts_of_the_graph(tmp_path: Path) -> None:
    vectors = {name: {"width": 2} for name in ("features", "trajectory", "timesteps", "prediction")}
    action = [{"name": "joints", "width": 3, "representation": "absolute"}]
    task = task_from_json({"name": "arm", "schema": {"rate": 10, "cameras": {}, "vectors": vectors, "action": action}})
    policy = DiffusionPolicy(train_config(task, "state", "laptop", None, {**TINY, "steps": 4}).policy).eval()
    result = export_policy(policy, {}, ExportOptions(), tmp_path / "policy", lambda: random_observations(policy))
    assert result.proof["differences"]["actions"] < 1e-5
    assert list(open_exported_policy(tmp_path / "policy").spec["obs"]) == list(vectors)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precision_is_smaller_and_within_tolerance(precision: str, lift_store: Store, tmp_path: Path) -> None:
    sizes, policy = {}, random_policy(obs="state", fusion=512, n_emb=64, n_head=4, prediction_type="sample")
    obs = observations_from_store(obs_keys(policy), lift_store, 2)
    for name in ("fp32", precision):
        options = ExportOptions(precision=name)  # type: ignore[arg-type]
        result = export_policy(policy, {"render": "fast"}, options, tmp_path / name, lambda: obs)
        sizes[name] = (tmp_path / name / "policy.onnx").stat().st_size
        assert result.proof["tolerance"] == TOLERANCES[name]  # type: ignore[index]
    assert 1e-7 < result.proof["differences"]["actions"] <= result.proof["tolerance"]
    assert sizes[precision] < sizes["fp32"] * 0.65


def test_overflow_in_half_precision_is_detected(lift_store: Store, tmp_path: Path) -> None:
    policy = random_policy(obs="state")
    with torch.no_grad():
        policy.denoiser.head.weight *= 1e6
    obs = observations_from_store(obs_keys(policy), lift_store, 2)
    with pytest.raises(DdpError, match="differs from torch by .* Use --precision fp32"):
        export_policy(policy, {"render": "fast"}, ExportOptions(precision="fp16"), tmp_path / "policy", lambda: obs)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_beyond_the_tolerance_leaves_nothing(lift_store: Store, tmp_path: Path) -> None:
    """Rounding differences in float32 of predictions that are a million times larger than actions."""
    policy = random_policy(obs="state")
    with torch.no_grad():
        policy.denoiser.head.weight *= 1e6
    obs = observations_from_store(obs_keys(policy), lift_store, 2)
    with pytest.raises(DdpError, match="denoiser: output differs from torch by .*, more than 1e-04"):
        export_policy(policy, {"render": "fast"}, ExportOptions(), tmp_path / "out/policy", lambda: obs)
    assert list(tmp_path.iterdir()) == []
