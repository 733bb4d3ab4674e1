"""Checkpoints of the published code are imported without executing code from them."""

from __future__ import annotations

import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ddp, ok, refused
from core.published_recipe import inputs, state_dict

from ddp_cli.config import PolicyConfig
from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.published import import_published, load_published, published_config
from ddp_cli.core.safe_unpickle import InertObject, read_torch_zip, to_plain_containers
from ddp_cli.errors import CheckpointError

TARGET = "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy"


def published_cfg(target: str = TARGET, **policy: object) -> dict:
    scheduler = {
        "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
        "num_train_timesteps": 100,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "squaredcos_cap_v2",
        "variance_type": "fixed_small",
        "clip_sample": True,
        "prediction_type": "epsilon",
    }
    settings = {"horizon": 10, "n_obs_steps": 2, "n_action_steps": 8, "crop_shape": [76, 76], "n_layer": 2, "n_emb": 32}
    settings |= {"_target_": target, "noise_scheduler": scheduler, "num_inference_steps": 5, "eval_fixed_crop": True}
    return {"task_name": "square_image", "policy": settings | policy}


def save_ckpt(path: Path, cfg: object, weights: dict, monkeypatch: pytest.MonkeyPatch, **extra: object) -> Path:
    """Saves a .ckpt as the published workspace does, with classes that cannot be imported afterwards."""
    module = types.ModuleType("omegaconf_stand_in")
    node = type("DictConfig", (), {"__module__": "omegaconf_stand_in"})
    module.DictConfig = node
    monkeypatch.setitem(sys.modules, "omegaconf_stand_in", module)

    def wrap(value: object) -> object:
        wrapped = node()
        wrapped.__dict__ = (
            {"_content": {k: wrap(v) for k, v in value.items()}} if isinstance(value, dict) else {"_val": value}
        )
        return wrapped

    payload = {
        "cfg": wrap(cfg),
        "state_dicts": {"model": weights, "ema_model": weights, "optimizer": {}},
        "pickles": {},
        **extra,
    }
    torch.save(payload, path)
    monkeypatch.delitem(sys.modules, "omegaconf_stand_in")
    return path


def test_a_published_checkpoint_predicts_the_same_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PolicyConfig(task="square", n_layer=2, n_emb=32, num_inference_steps=5)
    weights = state_dict(config)
    path = save_ckpt(tmp_path / "model.ckpt", published_cfg(), weights, monkeypatch)
    ok(ddp("import", path, "--out", tmp_path / "native"))
    policy, meta = load_policy(tmp_path / "native")
    assert policy.config == config.model_copy(update={"timestep_spacing": "leading"})
    assert meta["published"] == "model.ckpt"
    obs, _ = inputs(2)
    expected = import_published(weights, policy.config).predict_action(obs, torch.Generator().manual_seed(1))
    actual = policy.predict_action(obs, torch.Generator().manual_seed(1))
    assert torch.equal(actual["action_pred"], expected["action_pred"])


def test_settings_of_low_dim_checkpoints_are_read_from_their_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PolicyConfig(task="can", obs="state", n_layer=2, n_emb=32)
    weights = state_dict(config)
    for part in ("scale", "offset"):
        values = [weights.pop(f"normalizer.params_dict.{key}.{part}") for key in config.low_dim]
        weights[f"normalizer.params_dict.obs.{part}"] = torch.cat(values)
    cfg = published_cfg("a.DiffusionTransformerLowdimPolicy", model={"n_layer": 2, "n_emb": 32, "input_dim": 7})
    del cfg["policy"]["n_layer"], cfg["policy"]["n_emb"], cfg["policy"]["crop_shape"]
    cfg["task_name"] = "can_lowdim"
    policy, _ = load_published(save_ckpt(tmp_path / "m.ckpt", cfg, weights, monkeypatch))
    assert (policy.config.task.name, policy.config.obs, policy.config.n_layer) == ("can", "state", 2)


def test_absolute_actions_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PolicyConfig(task="square", actions="absolute", n_layer=2, n_emb=32, num_inference_steps=5)
    cfg = published_cfg(shape_meta={"action": {"shape": [10]}})
    policy, meta = load_published(save_ckpt(tmp_path / "m.ckpt", cfg, state_dict(config), monkeypatch))
    assert policy.config == config.model_copy(update={"timestep_spacing": "leading"})
    assert meta["action"]["frame"] == "world"


def test_code_in_the_file_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that calls os.system: the call is read as an InertObject, and the file is rejected."""
    marker = tmp_path / "executed"

    class Malicious:
        def __reduce__(self) -> tuple:
            import os

            return os.system, (f"touch {marker}",)

    path = tmp_path / "malicious.ckpt"
    torch.save(Malicious(), path)
    assert "no cfg and state_dicts" in refused(ddp("import", path, "--out", tmp_path / "native"))
    config = PolicyConfig(task="square", n_layer=2, n_emb=32, num_inference_steps=5)
    hidden = save_ckpt(tmp_path / "hidden.ckpt", published_cfg(), state_dict(config), monkeypatch, extra=Malicious())
    load_published(hidden)
    call = read_torch_zip(hidden)["extra"]
    assert isinstance(call, InertObject)
    assert call.name.endswith("system")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "os.system", "torch.hub.load", "functools.partial"])
def test_other_classes_and_functions_become_inert(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    call = f"c{module}\n{attribute}\n(V1 + 1\ntR."  # pickle protocol 0: name(*("1 + 1",))
    with zipfile.ZipFile(tmp_path / "call.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", call)
    result = read_torch_zip(tmp_path / "call.ckpt")
    assert isinstance(result, InertObject)
    assert (result.name, result.args) == (name, ("1 + 1",))


def test_defaults_of_a_published_configuration(tmp_path: Path) -> None:
    config = published_config(published_cfg(crop_shape=None, num_inference_steps=None), tmp_path)
    assert (config.crop_shape, config.num_inference_steps) == ((84, 84), 100)
    cfg = published_cfg()
    cfg["policy"]["noise_scheduler"]["variance_type"] = "learned"
    with pytest.raises(CheckpointError, match="variance_type 'learned'"):
        published_config(cfg, tmp_path)


def test_an_incomplete_configuration_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = published_cfg()
    del cfg["policy"]["noise_scheduler"]
    with pytest.raises(CheckpointError, match="cannot be read.*noise_scheduler"):
        load_published(save_ckpt(tmp_path / "m.ckpt", cfg, {}, monkeypatch))


def test_other_policy_classes_are_rejected_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_ckpt(tmp_path / "m.ckpt", published_cfg("x.DiffusionUnetHybridImagePolicy"), {}, monkeypatch)
    with pytest.raises(CheckpointError, match="DiffusionUnetHybridImagePolicy.*not supported"):
        load_published(path)


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    with pytest.raises(CheckpointError, match="no file"):
        load_published(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="not a torch checkpoint"):
        load_published(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1})[:-3])
    with pytest.raises(CheckpointError, match="damaged"):
        load_published(path)


def test_tensors_round_trip(tmp_path: Path) -> None:
    shared = torch.arange(12.0).view(3, 4)
    tensors = {
        "contiguous": shared,
        "view": shared[1:, ::2],
        "half": shared.half(),
        "long": torch.tensor([7]),
        "empty": torch.empty(0),
    }
    torch.save({**tensors, "parameter": torch.nn.Parameter(shared)}, tmp_path / "t.ckpt")
    loaded = read_torch_zip(tmp_path / "t.ckpt")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].dtype == tensor.dtype
    assert torch.equal(loaded["parameter"], shared)
    assert to_plain_containers([1, {"a": (2,)}]) == [1, {"a": [2]}]
