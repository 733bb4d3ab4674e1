from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import tiny_config

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.data.store import Store
from ddp_cli.deploy import export as module
from ddp_cli.deploy.export import export, stored_observations
from ddp_cli.errors import DdpError


def exported(folder: Path, store: Store, kind: str, out: Path) -> module.Exported:
    policy, meta = load_policy(folder)
    config = policy.config
    keys = [*config.image_keys, *config.low_dim]
    return export(policy, meta, kind, out, lambda: stored_observations(keys, store, config.n_obs_steps))


def test_graphs_sample_the_same_actions_as_torch(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    """Runs the whole chain with nothing but the graphs and policy.json (DDIM by hand)."""
    done = exported(checkpoint, lift_store, "onnx", tmp_path / "policy")
    assert done.files == ["denoiser.onnx", "encoder.onnx", "policy.json"]
    assert max(done.differences.values()) < 1e-4
    policy, _ = load_policy(checkpoint)
    spec = json.loads((tmp_path / "policy" / "policy.json").read_text())
    obs = stored_observations(list(spec["obs"]), lift_store, 2, count=3)
    expected = policy.predict_action(obs, torch.Generator().manual_seed(4))["action_pred"].numpy()

    encoder, denoiser = (
        onnxruntime.InferenceSession(tmp_path / "policy" / f"{n}.onnx") for n in ("encoder", "denoiser")
    )
    (features,) = encoder.run(None, {k: v.contiguous().numpy() for k, v in obs.items()})
    assert features.shape == (3, 2, spec["features"])
    x = torch.randn(3, 10, 7, generator=torch.Generator().manual_seed(4)).numpy()
    alphas = np.array(spec["alphas_cumprod"])
    steps = spec["timesteps"]
    assert steps == [99, 49]
    for k, before in zip(steps, [49, None], strict=True):
        (epsilon,) = denoiser.run(None, {"trajectory": x, "timesteps": np.full(3, k), "features": features})
        clean = np.clip((x - np.sqrt(1 - alphas[k]) * epsilon) / np.sqrt(alphas[k]), -1, 1)
        a = alphas[before] if before is not None else 1.0
        x = (np.sqrt(a) * clean + np.sqrt(1 - a) * epsilon).astype(np.float32)
    scale, offset = (np.array(spec["action_normalizer"][n]) for n in ("scale", "offset"))
    np.testing.assert_allclose((x - offset) / scale, expected, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"obs_as_cond": False},
        {"obs_as_cond": False, "time_as_cond": False},
        {"pred_action_steps_only": True},
        {"n_cond_layers": 1, "causal_attn": False},
        {"obs": "state"},
        {"fusion": 16},
    ],
)
def test_every_branch_exports(settings: dict, lift_store: Store, tmp_path: Path) -> None:
    config = tiny_config(**settings).policy
    keys = [*config.image_keys, *config.low_dim]
    policy = DiffusionPolicy(config)
    done = export(policy, {}, "onnx", tmp_path / "policy", lambda: stored_observations(keys, lift_store, 2))
    assert max(done.differences.values()) < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "policy" / "denoiser.onnx")
    (out,) = session.get_outputs()
    assert out.shape[1:] == [config.trajectory_steps, 7 if config.obs_as_cond else 7 + policy.feature_dim]


def test_safetensors_folder_holds_weights_and_configuration(
    checkpoint: Path, lift_store: Store, tmp_path: Path
) -> None:
    done = exported(checkpoint, lift_store, "safetensors", tmp_path / "policy")
    assert done.files == ["model.safetensors", "policy.json"]
    spec = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert spec["policy"]["task"] == "lift"
    assert spec["obs"]["agentview_image"] == {"shape": [2, 3, 84, 84], "dtype": "uint8"}
    assert spec["action"]["convention"] == "delta"


def test_a_difference_beyond_the_tolerance_leaves_nothing(
    checkpoint: Path, lift_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(DdpError, match="differs from torch"):
        exported(checkpoint, lift_store, "onnx", tmp_path / "out" / "policy")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unknown_format_is_refused(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    with pytest.raises(DdpError, match="did you mean 'onnx'"):
        exported(checkpoint, lift_store, "onxx", tmp_path / "policy")
