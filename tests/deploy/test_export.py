from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ddp, ok_json, refused, tiny_config

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.data.store import Store
from ddp_cli.deploy import export as module
from ddp_cli.deploy.export import ExportOptions, export, observations_from_simulator, observations_from_store
from ddp_cli.deploy.exported_policy import draw_torch_noise, load_exported, open_policy
from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.inference.agent import PolicyAgent
from ddp_cli.inference.onnx_policy import obs_keys


def exported(folder: Path, store: Store, out: Path, **how: object) -> module.ExportResult:
    policy, meta = load_policy(folder)
    settings = ExportOptions(**how)  # type: ignore[arg-type]
    return export(policy, meta, settings, out, lambda: observations_from_store(obs_keys(policy), store, 2))


def randomised(**settings: object) -> DiffusionPolicy:
    """A policy whose every weight matters, those that begin as zeros and the normaliser included."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(tiny_config(**settings).policy)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for name, buffer in policy.normalizer.named_buffers():
        buffer.uniform_(0.5, 1.5) if name.endswith("scale") else buffer.uniform_(-0.3, 0.3)
    return policy.eval()


def test_a_folder_says_all_that_a_program_must_know(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    done = exported(checkpoint, lift_store, tmp_path / "policy")
    assert done.files == [
        "README.md", "denoiser.onnx", "encoder.onnx", "policy.json", "policy.onnx", "proof.json", "runtime.py"
    ]  # fmt: skip
    assert max(done.proof["differences"].values()) < 1e-4
    assert done.proof["latency"]["p50_ms"] > 0
    spec = json.loads((tmp_path / "policy/policy.json").read_text())
    assert spec["task"] == "lift"
    assert spec["obs"]["agentview_image"] == {"shape": [84, 84, 3], "dtype": "uint8", "unit": "RGB, 0 to 255, upright"}
    assert spec["obs"]["robot0_eef_pos"]["shape"] == [3]
    assert (spec["action"]["convention"], spec["limits"]["high"]) == ("delta", [1.0] * 7)
    assert (spec["n_obs_steps"], spec["n_action_steps"], spec["control_hz"], spec["noise"]) == (2, 8, 20, [1, 10, 7])
    text = (tmp_path / "policy/README.md").read_text()
    assert '"agentview_image": ...,  # uint8 (84, 84, 3)' in text
    assert "largest difference from torch" in text


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
def test_the_graph_acts_as_torch_on_every_branch(settings: dict, lift_store: Store, tmp_path: Path) -> None:
    """Observations and noise in, actions out: the whole chain, batch and all."""
    policy = randomised(**settings)
    obs = observations_from_store(obs_keys(policy), lift_store, 2, count=3)
    export(policy, {"render": "fast"}, ExportOptions(), tmp_path / "policy", lambda: obs)
    spec = open_policy(tmp_path / "policy").spec
    expected = policy.predict_action(obs, torch.Generator().manual_seed(4))["action"].numpy()
    generator = torch.Generator().manual_seed(4)
    noise = np.stack([torch.randn(3, *spec["noise"][1:], generator=generator).numpy() for _ in range(spec["noise"][0])])
    session = onnxruntime.InferenceSession(tmp_path / "policy/policy.onnx")
    (found,) = session.run(None, {k: v.contiguous().numpy() for k, v in obs.items()} | {"noise": noise})
    assert found.shape == (3, 8, policy.config.action_dim)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"sampler": "ddpm", "num_inference_steps": 4}, {"obs": "state"}])
def test_what_was_evaluated_is_what_is_deployed(settings: dict, lift_store: Store, tmp_path: Path) -> None:
    """On a CPU a policy acts as its export does, to the last bit: where there are contacts, it decides episodes."""
    policy, rng = randomised(**settings), np.random.default_rng(0)
    obs = observations_from_store(obs_keys(policy), lift_store, 2, count=3)
    export(policy, {"render": "fast"}, ExportOptions(), tmp_path / "policy", lambda: obs)
    torch.set_num_threads(1)  # as whoever evaluates does
    agents = PolicyAgent(policy), load_exported(tmp_path / "policy")
    frames = [{k: lift_store.read(k)[row] for k in obs_keys(policy)} for row in rng.integers(0, 70, 8)]
    for agent in agents:
        agent.reset(7)
    for history in itertools.pairwise(frames):
        one, other = (agent.act(history) for agent in agents)
        np.testing.assert_array_equal(one.clip(-1, 1), other)


def test_parts_compute_the_chain_by_hand(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    """With nothing but encoder, denoiser and policy.json: DDIM as in its paper."""
    exported(checkpoint, lift_store, tmp_path / "policy")
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
    for k, before in zip(spec["timesteps"], [49, None], strict=True):
        (epsilon,) = denoiser.run(None, {"trajectory": x, "timesteps": np.full(3, k), "features": features})
        clean = np.clip((x - np.sqrt(1 - alphas[k]) * epsilon) / np.sqrt(alphas[k]), -1, 1)
        a = alphas[before] if before is not None else 1.0
        x = (np.sqrt(a) * clean + np.sqrt(1 - a) * epsilon).astype(np.float32)
    scale, offset = (np.array(spec["action_normalizer"][n]) for n in ("scale", "offset"))
    np.testing.assert_allclose((x - offset) / scale, expected, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_less_precise_graphs_are_smaller_and_close(precision: str, lift_store: Store, tmp_path: Path) -> None:
    sizes, policy = {}, randomised(obs="state", fusion=512, n_emb=64, n_head=4)
    obs = observations_from_store(obs_keys(policy), lift_store, 2)
    for name in ("fp32", precision):
        how = ExportOptions(precision=name)
        done = export(policy, {"render": "fast"}, how, tmp_path / name, lambda: obs)
        sizes[name] = (tmp_path / name / "policy.onnx").stat().st_size
        assert done.proof["tolerance"] == module.TOLERANCES[name]
    assert 1e-7 < done.proof["differences"]["actions"] <= done.proof["tolerance"]
    assert sizes[precision] < sizes["fp32"] * 0.65


def test_episodes_end_as_with_the_checkpoint(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    """The same noise on the same starts: `ddp export` itself compares."""
    done = exported(checkpoint, lift_store, tmp_path / "policy", seeds=(3,))
    ran = done.proof["episodes"]
    assert [e["seed"] for e in ran["episodes"]] == [3]
    assert ran["episodes"][0]["checkpoint"] == ran["episodes"][0]["exported"]
    assert ran["differing"] == []
    assert "of 1 episodes the checkpoint succeeds in 0" in (tmp_path / "policy/README.md").read_text()


def test_noise_of_an_exported_agent_is_that_of_the_checkpoint(
    checkpoint: Path, lift_store: Store, tmp_path: Path
) -> None:
    exported(checkpoint, lift_store, tmp_path / "policy")
    agent = load_exported(tmp_path / "policy")
    agent.reset(11)
    again = torch.randn(1, 10, 7, generator=torch.Generator().manual_seed(11))
    np.testing.assert_array_equal(draw_torch_noise(agent.policy, agent._generator), again.numpy())


def test_without_a_store_starts_are_looked_at() -> None:
    policy = randomised()
    obs = observations_from_simulator(policy, "fast", count=2)
    assert {key: tuple(x.shape) for key, x in obs.items()} == {
        "agentview_image": (2, 2, 3, 84, 84), "robot0_eye_in_hand_image": (2, 2, 3, 84, 84),
        "robot0_eef_pos": (2, 2, 3), "robot0_eef_quat": (2, 2, 4), "robot0_gripper_qpos": (2, 2, 2),
    }  # fmt: skip
    assert policy.encode_obs(obs).shape == (2, 2, policy.feature_dim)


def test_programs_of_torch_export(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    done = exported(checkpoint, lift_store, tmp_path / "policy", kind="pt2")
    assert done.files == ["README.md", "denoiser.pt2", "encoder.pt2", "policy.json", "proof.json"]
    policy, _ = load_policy(checkpoint)
    obs = observations_from_store(obs_keys(policy), lift_store, 2, count=5)
    encoder = torch.export.load(tmp_path / "policy/encoder.pt2").module()
    torch.testing.assert_close(encoder(*(obs[k] for k in obs_keys(policy))), policy.encode_obs(obs))


def test_without_a_compiler_nothing_is_left_of_a_compiled_export(
    checkpoint: Path, lift_store: Store, tmp_path: Path
) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/no/compiler",)}),
        pytest.raises(ConfigError, match=r"AOTInductor does not work here: .*--format pt2"),
    ):
        exported(checkpoint, lift_store, tmp_path / "policy", kind="aoti")
    assert not (tmp_path / "policy").exists()


def test_programs_compiled_for_this_machine(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    done = exported(checkpoint, lift_store, tmp_path / "policy", kind="aoti")
    assert done.files == ["README.md", "denoiser.pt2", "encoder.pt2", "policy.json", "proof.json"]
    assert max(done.proof["differences"].values()) < 1e-4
    policy, _ = load_policy(checkpoint)
    obs = observations_from_store(obs_keys(policy), lift_store, 2, count=5)
    encoder = torch._inductor.aoti_load_package(str(tmp_path / "policy/encoder.pt2"))
    torch.testing.assert_close(encoder(*(obs[k].contiguous() for k in obs_keys(policy))), policy.encode_obs(obs))


def test_safetensors_folder_holds_weights_and_configuration(
    checkpoint: Path, lift_store: Store, tmp_path: Path
) -> None:
    done = exported(checkpoint, lift_store, tmp_path / "policy", kind="safetensors")
    assert done.files == ["README.md", "model.safetensors", "policy.json"]
    spec = json.loads((tmp_path / "policy/policy.json").read_text())
    assert spec["policy"]["task"] == "lift"
    assert (tmp_path / "policy/README.md").read_text().startswith("---\nlibrary_name: ddp\n")


def test_a_difference_beyond_the_tolerance_leaves_nothing(
    checkpoint: Path, lift_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.TOLERANCES, "fp32", -1.0)
    with pytest.raises(DdpError, match="encoder differ from torch"):
        exported(checkpoint, lift_store, tmp_path / "out/policy")
    assert list((tmp_path / "out").iterdir()) == []


def test_numbers_that_half_precision_cannot_hold_are_found(lift_store: Store, tmp_path: Path) -> None:
    policy = randomised(obs="state")
    with torch.no_grad():
        policy.denoiser.head.weight *= 1e6
    obs = observations_from_store(obs_keys(policy), lift_store, 2)
    with pytest.raises(DdpError, match="differ from torch by .* Use --precision fp32"):
        export(policy, {"render": "fast"}, ExportOptions(precision="fp16"), tmp_path / "policy", lambda: obs)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_never_replaced_by_less(
    checkpoint: Path, lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("onnx", "safetensors", "ddp"):
        refused(ddp("export", checkpoint, "--format", kind, "--out", checkpoint, "--overwrite"))
    ok_json("export", checkpoint, "--format", "ddp", "--out", "native")
    assert "something else" in refused(
        ddp("export", checkpoint, "--format", "safetensors", "--out", "native", "--overwrite")
    )
    assert "'--out'" not in refused(ddp("export", checkpoint, "--out", "."))
    assert (checkpoint / "train_state.pt").exists()


def test_observations_of_another_task_are_refused(
    checkpoint: Path, lift_zarr: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    attrs = json.loads((lift_zarr / "zarr.json").read_text())
    shutil.copytree(lift_zarr, "other.zarr")
    attrs["attributes"]["task"] = "can"
    Path("other.zarr/zarr.json").write_text(json.dumps(attrs))
    assert "holds demos of 'can', not of 'lift'" in refused(ddp("export", checkpoint, "--data", "other.zarr"))
    assert not Path("policy").exists()


def test_a_damaged_description_is_named(policy_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(policy_folder, tmp_path / "policy"))
    spec = json.loads((folder / "policy.json").read_text())
    for key in ("policy", "render", "action_normalizer"):
        (folder / "policy.json").write_text(json.dumps({k: v for k, v in spec.items() if k != key}))
        assert f"does not say {key}" in refused(ddp("rollout", "--policy", folder))


def test_what_cannot_be_written_is_refused(checkpoint: Path, lift_store: Store, tmp_path: Path) -> None:
    for how, message in (
        ({"kind": "onxx"}, "did you mean 'onnx'"),
        ({"precision": "fp61"}, "did you mean 'fp16'"),
        ({"kind": "pt2", "precision": "fp16"}, "are for onnx, not for pt2"),
        ({"opset": 3}, "opset = 3 cannot be written"),
    ):
        with pytest.raises(ConfigError, match=message):
            exported(checkpoint, lift_store, tmp_path / "policy", **how)
    assert not (tmp_path / "policy").exists()


def test_eval_and_rollout_take_an_exported_folder(
    checkpoint: Path, lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ok_json("export", checkpoint, "--data", lift_zarr, "--episodes", "0")
    both = ok_json("eval", checkpoint, "--policy", "policy", "-n", "2", "--workers", "1")
    first, second = both["first"]["episodes"], both["second"]["episodes"]
    assert [(e["seed"], e["success"], e["steps"]) for e in first] == [
        (e["seed"], e["success"], e["steps"]) for e in second
    ]
    assert both["second"]["engine"] == "exported"
    assert "is decided" in refused(ddp("eval", "policy", "--sampler", "ddpm"))
    assert "at once" in refused(ddp("rollout", checkpoint, "--policy", "policy"))
    said = ok_json("rollout", "--policy", "policy", "--seed", "100000")
    assert said["episodes"][0]["steps"] == first[0]["steps"]


def test_an_upload_that_fails_keeps_the_folder(
    checkpoint: Path, lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused(ddp("export", checkpoint, "--format", "safetensors", "--push-to-hub", "nobody/none"))
    assert "could not be uploaded to 'nobody/none'" in said
    assert (tmp_path / "policy/model.safetensors").exists()
