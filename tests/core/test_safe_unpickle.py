"""Checkpoints of the published code: read without running anything that they carry."""

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
from ddp_cli.core.safe_unpickle import InertObject, plain, read_checkpoint
from ddp_cli.errors import CheckpointError

TARGET = "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy"


def published_cfg(target: str = TARGET, **policy: object) -> dict:
    schedule = {
        "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
        "num_train_timesteps": 100,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "squaredcos_cap_v2",
        "variance_type": "fixed_small",
        "clip_sample": True,
        "prediction_type": "epsilon",
    }
    own = {"horizon": 10, "n_obs_steps": 2, "n_action_steps": 8, "crop_shape": [76, 76], "n_layer": 2, "n_emb": 32}
    own |= {"_target_": target, "noise_scheduler": schedule, "num_inference_steps": 5, "eval_fixed_crop": True}
    return {"task_name": "square_image", "policy": own | policy}


def save_ckpt(path: Path, cfg: object, weights: dict, monkeypatch: pytest.MonkeyPatch, **extra: object) -> Path:
    """As the published workspace does, with classes that exist only while it is saved."""
    module = types.ModuleType("omegaconf_stand_in")
    node = type("DictConfig", (), {"__module__": "omegaconf_stand_in"})
    module.DictConfig = node
    monkeypatch.setitem(sys.modules, "omegaconf_stand_in", module)

    def wrap(value: object) -> object:
        made = node()
        made.__dict__ = (
            {"_content": {k: wrap(v) for k, v in value.items()}} if isinstance(value, dict) else {"_val": value}
        )
        return made

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
    ok(ddp("export", path, "--format", "ddp", "--out", tmp_path / "native"))
    policy, meta = load_policy(tmp_path / "native")
    assert policy.config == config.model_copy(update={"timestep_spacing": "leading"})
    assert meta["published"] == "model.ckpt"
    obs, _ = inputs(2)
    expected = import_published(weights, policy.config).predict_action(obs, torch.Generator().manual_seed(1))
    found = policy.predict_action(obs, torch.Generator().manual_seed(1))
    assert torch.equal(found["action_pred"], expected["action_pred"])


def test_low_dim_checkpoints_take_their_model_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_absolute_actions_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PolicyConfig(task="square", actions="absolute", n_layer=2, n_emb=32, num_inference_steps=5)
    cfg = published_cfg(shape_meta={"action": {"shape": [10]}})
    policy, meta = load_published(save_ckpt(tmp_path / "m.ckpt", cfg, state_dict(config), monkeypatch))
    assert policy.config == config.model_copy(update={"timestep_spacing": "leading"})
    assert meta["action"]["frame"] == "world"


def test_nothing_in_the_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that calls os.system: its call is read as a record, and the file is refused."""
    witness = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple:
            import os

            return os.system, (f"touch {witness}",)

    path = tmp_path / "bomb.ckpt"
    torch.save(Bomb(), path)
    assert "no cfg and state_dicts" in refused(ddp("export", path, "--format", "ddp", "--out", tmp_path / "native"))
    config = PolicyConfig(task="square", n_layer=2, n_emb=32, num_inference_steps=5)
    hidden = save_ckpt(tmp_path / "hidden.ckpt", published_cfg(), state_dict(config), monkeypatch, extra=Bomb())
    load_published(hidden)
    record = read_checkpoint(hidden)["extra"]
    assert isinstance(record, InertObject)
    assert record.name.endswith("system")
    assert not witness.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "os.system", "torch.hub.load", "functools.partial"])
def test_every_other_name_is_a_record(name: str) -> None:
    from ddp_cli.core.safe_unpickle import _Reader

    reader = _Reader.__new__(_Reader)
    module, _, attribute = name.rpartition(".")
    assert issubclass(reader.find_class(module, attribute), InertObject)


def test_what_a_published_configuration_leaves_open(tmp_path: Path) -> None:
    config = published_config(published_cfg(crop_shape=None, num_inference_steps=None), tmp_path)
    assert (config.crop_shape, config.num_inference_steps) == ((84, 84), 100)
    cfg = published_cfg()
    cfg["policy"]["noise_scheduler"]["variance_type"] = "learned"
    with pytest.raises(CheckpointError, match="variance_type 'learned'"):
        published_config(cfg, tmp_path)


def test_a_configuration_without_its_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = published_cfg()
    del cfg["policy"]["noise_scheduler"]
    with pytest.raises(CheckpointError, match="cannot be read.*noise_scheduler"):
        load_published(save_ckpt(tmp_path / "m.ckpt", cfg, {}, monkeypatch))


def test_other_families_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_ckpt(tmp_path / "m.ckpt", published_cfg("x.DiffusionUnetHybridImagePolicy"), {}, monkeypatch)
    with pytest.raises(CheckpointError, match="DiffusionUnetHybridImagePolicy.*another family"):
        load_published(path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
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


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(12.0).view(3, 4)
    tensors = {
        "whole": shared,
        "view": shared[1:, ::2],
        "half": shared.half(),
        "long": torch.tensor([7]),
        "empty": torch.empty(0),
    }
    torch.save({**tensors, "parameter": torch.nn.Parameter(shared)}, tmp_path / "t.ckpt")
    back = read_checkpoint(tmp_path / "t.ckpt")
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor), name
        assert back[name].dtype == tensor.dtype
    assert torch.equal(back["parameter"], shared)
    assert plain([1, {"a": (2,)}]) == [1, {"a": [2]}]
