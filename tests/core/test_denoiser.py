from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ddp_cli.core.denoiser import Attention, Denoiser, Dropout, TransformerLayer, timestep_embedding
from ddp_cli.policy_config import PolicyConfig


def make_denoiser(causal: bool = True) -> Denoiser:
    torch.manual_seed(0)
    config = PolicyConfig(
        task="lift", obs="state", horizon=6, n_obs_steps=3, n_action_steps=4, n_layer=2, n_head=2, n_emb=16,
        p_drop_attn=0.0, causal_attn=causal,
    )  # fmt: skip
    return Denoiser(config, feature_dim=5).eval()


def dependencies(net: Denoiser) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs that each output step depends on: (T, T) of actions and (T, To) of observations."""
    x, cond = torch.randn(1, 6, 7, requires_grad=True), torch.randn(1, 3, 5, requires_grad=True)
    out = net(x, torch.tensor([7]), cond)
    grads = [torch.autograd.grad(out[0, t].sum(), (x, cond), retain_graph=True) for t in range(6)]
    depends_x = torch.stack([g[0][0].abs().sum(-1) > 0 for g in grads])
    depends_cond = torch.stack([g[1][0].abs().sum(-1) > 0 for g in grads])
    return depends_x, depends_cond


def test_causal_attention_excludes_later_actions_and_observations() -> None:
    actions, observations = dependencies(make_denoiser())
    t = torch.arange(6)
    assert torch.equal(actions, t[:, None] >= t[None])
    assert torch.equal(observations, t[:, None] >= t[None, :3])


def test_non_causal_attention_includes_all_actions_and_observations() -> None:
    actions, observations = dependencies(make_denoiser(causal=False))
    assert actions.all()
    assert observations.all()


def test_decoder_layer_equals_that_of_torch() -> None:
    torch.manual_seed(1)
    layer = TransformerLayer(16, 4, 0.0, decoder=True)
    reference = nn.TransformerDecoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    copy_attention(layer.self_attention, reference.self_attn)
    copy_attention(layer.cross_attention, reference.multihead_attn)
    for name in ("norm1", "norm2", "norm3", "linear1", "linear2"):
        getattr(layer, name).load_state_dict(getattr(reference, name).state_dict())
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    mask = torch.ones(5, 5).tril().bool()
    memory_mask = torch.ones(5, 4).tril(1).bool()
    expected = reference(x, memory, tgt_mask=~mask, memory_mask=~memory_mask)
    torch.testing.assert_close(layer(x, mask, memory, memory_mask), expected, atol=1e-6, rtol=0)


def copy_attention(attention: Attention, reference: nn.MultiheadAttention) -> None:
    for part in ("weight", "bias"):
        packed = getattr(reference, f"in_proj_{part}").data
        getattr(attention.query, part).data = packed[:16]
        getattr(attention.key_value, part).data = packed[16:]
    attention.out.load_state_dict(reference.out_proj.state_dict())


def test_timestep_embedding_equals_its_formula() -> None:
    row = timestep_embedding(torch.tensor([3]), 4)[0]
    expected = [math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)]
    assert row.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_dropout_has_bernoulli_moments_in_every_column(p: float) -> None:
    torch.manual_seed(0)
    drop, n = Dropout(p), 40_000
    y = drop(torch.ones(n, 5))
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / (1 - p)]), atol=1e-4, rtol=0)
    five_sigma = 5 * (p * (1 - p) / n) ** 0.5
    for column in y.T:  # each 64-bit random number serves four consecutive values
        assert abs(float((column == 0).float().mean()) - p) < five_sigma
    both = ((y[:, 0] == 0) & (y[:, 1] == 0)).float().mean()
    assert abs(float(both) - p * p) < five_sigma
    x = torch.ones(7, 3, requires_grad=True)
    out = drop(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("p", [1e-9, 1e-6, 7e-6, 1e-4, 0.0005, 0.002, 0.998, 0.9995, 0.99999, 1 - 1e-7])
def test_dropout_is_right_for_p_near_0_and_1(p: float) -> None:
    torch.manual_seed(0)
    n = 4_000_000
    kept = Dropout(p)(torch.ones(n))
    n_dropped, expected = int((kept == 0).sum()), n * p
    assert abs(n_dropped - expected) < 5 * (n * p * (1 - p)) ** 0.5 + 0.01 * min(expected, n - expected) + 1
    values = kept[kept != 0].unique()
    assert len(values) <= 1
    assert values.tolist() == pytest.approx([1 / (1 - p)] * len(values), rel=0.01)


def test_dropout_uses_the_same_random_numbers_as_ever() -> None:
    """Training stays reproducible."""
    torch.manual_seed(7)
    dropped = [(Dropout(p)(torch.ones(24)) == 0).nonzero().flatten().tolist() for p in (0.3, 0.1, 0.0)]
    assert dropped == [[1, 5, 11, 12, 13, 17, 21], [2, 5, 10, 15], []]
    assert torch.rand(1).item() == pytest.approx(0.5209300518035889, abs=1e-7)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_in_bfloat16_is_that_in_float32(masked: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4, 0.3).eval()
    x, memory = torch.randn(3, 10, 32), torch.randn(3, 4, 32)
    mask = torch.ones(10, 4).tril().bool() if masked else None
    expected = attention(x, memory, mask).detach()
    with torch.autocast("cpu", torch.bfloat16):
        actual = attention(x, memory, mask)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, atol=0.02 * float(expected.abs().max()), rtol=0)
    attention.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(attention(x, memory, mask), actual)  # dropout
