"""Checkpoints of the published code are imported without executing code from them."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ddp, ok, refused
from core.published_checkpoint import published_cfg, save_ckpt, shape_meta
from core.published_recipe import inputs, low_dim_weights, state_dict
from safetensors.torch import save_file

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.published import import_published, load_published
from ddp_cli.core.published_config import published_config
from ddp_cli.core.safe_unpickle import InertObject, read_torch_file, to_plain_containers
from ddp_cli.errors import CheckpointError
from ddp_cli.policy_config import PolicyConfig


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
    weights = low_dim_weights(config)
    cfg = published_cfg("a.DiffusionTransformerLowdimPolicy", model={"n_layer": 2, "n_emb": 32, "input_dim": 7})
    del cfg["policy"]["n_layer"], cfg["policy"]["n_emb"], cfg["policy"]["crop_shape"]
    cfg["task_name"] = "can_lowdim"
    policy, _ = load_published(save_ckpt(tmp_path / "m.ckpt", cfg, weights, monkeypatch))
    assert (policy.config.task.name, policy.config.obs, policy.config.n_layer) == ("can", "state", 2)


def test_absolute_actions_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PolicyConfig(task="square", actions="absolute", n_layer=2, n_emb=32, num_inference_steps=5)
    cfg = published_cfg(shape_meta=shape_meta(action_dim=10))
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
    call = read_torch_file(hidden)["extra"]
    assert isinstance(call, InertObject)
    assert call.name.endswith("system")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "os.system", "torch.hub.load", "functools.partial"])
def test_other_classes_and_functions_become_inert(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    call = f"c{module}\n{attribute}\n(V1 + 1\ntR."  # pickle protocol 0: name(*("1 + 1",))
    with zipfile.ZipFile(tmp_path / "call.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", call)
    result = read_torch_file(tmp_path / "call.ckpt")
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


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_round_trip(legacy: bool, tmp_path: Path) -> None:
    shared = torch.arange(12.0).view(3, 4)
    tensors = {
        "contiguous": shared,
        "view": shared[1:, ::2],
        "half": shared.half(),
        "long": torch.tensor([7]),
        "empty": torch.empty(0),
    }
    content = {**tensors, "parameter": torch.nn.Parameter(shared)}
    torch.save(content, tmp_path / "t.ckpt", _use_new_zipfile_serialization=not legacy)
    loaded = read_torch_file(tmp_path / "t.ckpt")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].dtype == tensor.dtype
    assert torch.equal(loaded["parameter"], shared)


def test_omegaconf_nodes_become_plain_containers() -> None:
    assert to_plain_containers([1, {"a": (2,)}]) == [1, {"a": [2]}]
    unknown = InertObject(5)  # such as a number of numpy: no value is made up for it
    assert to_plain_containers({"horizon": unknown}) == {"horizon": unknown}


def test_a_legacy_checkpoint_is_the_same_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PolicyConfig(task="square", n_layer=2, n_emb=32, num_inference_steps=5)
    path = save_ckpt(tmp_path / "m.ckpt", published_cfg(), state_dict(config), monkeypatch, legacy=True)
    assert not zipfile.is_zipfile(path)
    ok(ddp("import", path, "--out", tmp_path / "native"))
    policy, _ = load_policy(tmp_path / "native")
    expected = import_published(state_dict(config), policy.config).state_dict()
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_code_in_a_legacy_file_is_not_executed(tmp_path: Path) -> None:
    """In the object, and in any of the pickles before and after it."""
    marker = tmp_path / "executed"
    call = f"cos\nsystem\n(Vtouch {marker}\ntR.".encode()
    torch.save({"weight": torch.ones(3)}, tmp_path / "t.ckpt", _use_new_zipfile_serialization=False)
    parts = split_pickles(tmp_path / "t.ckpt")
    for i in range(5):
        changed = [call if i == position else part for position, part in enumerate(parts)]
        (tmp_path / "call.ckpt").write_bytes(b"".join(changed))
        with pytest.raises(CheckpointError, match="no cfg and state_dicts|damaged|not a torch checkpoint"):
            load_published(tmp_path / "call.ckpt")
    assert not marker.exists()


def split_pickles(path: Path) -> list[bytes]:
    """The five pickles of a legacy file, and the storages behind them."""
    parts = []
    with path.open("rb") as file:
        for _ in range(5):
            start = file.tell()
            for opcode, _, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    break
            end = file.tell()
            file.seek(start)
            parts.append(file.read(end - start))
        return [*parts, file.read()]


def test_damaged_legacy_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "t.ckpt"
    torch.save({"weight": torch.ones(300)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for damaged, message in (
        (content[:-1], "ends within storage"),
        (content[:200], "damaged"),
        (content[:20], "damaged"),
        (content.replace(b"M,\x01", b"J\xff\xff\xff\x7f"), "a storage of 2147483647 values in a file of"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            read_torch_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "an object has the number 2147483647"),  # an index of the memo
        (pickle.dumps({"a": 1}).replace(b"a", b"\xff"), "UnicodeDecodeError"),
    ],
)
def test_damaged_pickles_are_reported(content: bytes, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    with pytest.raises(CheckpointError, match=f"damaged: .*{message}"):
        read_torch_file(tmp_path / "m.ckpt")


def test_tensors_do_not_exceed_their_storage(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1).expand(10**12)}, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match=r"a tensor of shape \(1000000000000,\) in a storage of 1 values"):
        read_torch_file(tmp_path / "m.ckpt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrapped_modules_are_removed(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole policy, or of one of its parts."""
    config = PolicyConfig(task="square", n_layer=2, n_emb=32, num_inference_steps=5)
    weights = state_dict(config)
    whole = {prefix + name: weight for name, weight in weights.items()}
    part = {name.replace("model.", "model." + prefix): weight for name, weight in weights.items()}
    expected = import_published(weights, config).state_dict()
    for wrapped in (whole, part):
        policy, _ = load_published(save_ckpt(tmp_path / "m.ckpt", published_cfg(), wrapped, monkeypatch))
        assert all(torch.equal(weight, expected[name]) for name, weight in policy.state_dict().items())
    with pytest.raises(CheckpointError, match=r"has 'model.pos_emb' twice"):
        load_published(save_ckpt(tmp_path / "m.ckpt", published_cfg(), {**part, **weights}, monkeypatch))


def test_files_without_a_published_policy_are_described(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for content, message in (
        ({"weight": torch.ones(1)}, "it is a state dict, without a configuration"),
        ({"model": {}, "algo_name": "bc"}, "it is a dictionary with the keys model, algo_name"),
        ([1], "it is a list"),
        (torch.nn.ReLU(), "it is an object of torch.nn.modules.activation.ReLU"),
    ):
        torch.save(content, path)
        assert message in refused(ddp("import", path, "--out", tmp_path / "out"))
    save_file({"weight": torch.ones(1)}, path)
    assert "is a safetensors file: weights without a configuration" in refused(ddp("import", path))
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
