from __future__ import annotations

from ddp_cli.core.denoiser import Denoiser
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.training.optimizer import weight_decay_groups


def test_no_weight_decay_on_biases_norms_and_position_embeddings() -> None:
    net = Denoiser(PolicyConfig(n_layer=2, n_emb=16), feature_dim=7)
    decay, no_decay = weight_decay_groups(net)
    names = {id(p): n for n, p in net.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decay} == {"weight"}
    assert not any("norm" in names[id(p)] or "ln_f" in names[id(p)] for p in decay)
    assert {"pos_emb", "cond_pos_emb", "head.bias", "ln_f.weight"} <= {names[id(p)] for p in no_decay}
    assert len(decay) + len(no_decay) == len(names)
