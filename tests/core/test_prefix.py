"""Actions that are given to a policy with `prefix_steps`: masks, the loss, and what is predicted."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config
from torch import Tensor

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.prefix import given_steps, prefix_inputs
from ddp_cli.errors import ConfigError

N = 4


def make_policy(**settings: object) -> DiffusionPolicy:
    """A policy whose weights all have an effect."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(tiny_config(**{"obs": "state", "prefix_steps": N} | settings).policy).eval()
    for parameter in policy.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    policy.normalizer.get_buffer("action_scale").uniform_(0.5, 1.5)
    policy.normalizer.get_buffer("action_offset").uniform_(-0.3, 0.3)
    return policy


def random_obs(policy: DiffusionPolicy, batch_size: int) -> dict[str, Tensor]:
    return {key: torch.randn(batch_size, policy.config.n_obs_steps, d) for key, d in policy.config.low_dim.items()}


def test_given_steps_start_at_the_last_observation() -> None:
    lengths = torch.tensor([0, 2, 4])
    steps = given_steps(make_policy().config, lengths)
    assert [row.nonzero().flatten().tolist() for row in steps] == [[], [1, 2], [1, 2, 3, 4]]
    steps = given_steps(make_policy(pred_action_steps_only=True).config, lengths)
    assert [row.nonzero().flatten().tolist() for row in steps] == [[], [0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("settings", [{}, {"pred_action_steps_only": True}, {"prediction_type": "sample"}])
def test_given_actions_are_clean_and_excluded_from_the_loss(settings: dict) -> None:
    policy = make_policy(**settings)
    actions, noise = torch.randn(3, 10, 7), torch.randn(3, *policy.trajectory_shape)
    features = policy.encode_obs(random_obs(policy, 3))
    inputs: list[tuple[Tensor, Tensor]] = []

    def denoiser(x: Tensor, _timesteps: Tensor, _cond: Tensor, given: Tensor) -> Tensor:
        inputs.append((x, given))
        return torch.zeros_like(x)

    policy.denoiser.forward = denoiser
    lengths = torch.tensor([[0], [1], [4]])
    loss = policy.loss_from_features(features, actions, noise[:, None], torch.tensor([[60], [70], [90]]), lengths)
    trajectory = actions[:, policy.config.trajectory_start :][:, : policy.config.trajectory_steps]
    x, given = inputs[0]
    assert torch.equal(given, given_steps(policy.config, lengths[:, 0]))
    assert torch.equal(x[given], trajectory[given])
    assert (x[~given] != trajectory[~given]).all()
    target = noise.clone() if policy.config.prediction_type == "epsilon" else trajectory.clone()
    target[given] = 0.0
    torch.testing.assert_close(loss, (target**2).mean())


def test_lengths_are_uniform_and_follow_all_other_noise() -> None:
    policy, without = make_policy(), make_policy(prefix_steps=0)
    noise = policy.sample_training_noise(2000, torch.Generator().manual_seed(1), noise_samples=2)
    assert noise.prefix_lengths is not None
    counts = torch.bincount(noise.prefix_lengths.flatten(), minlength=N + 1)
    assert len(counts) == N + 1
    assert (counts > 700).all()
    plain = without.sample_training_noise(2000, torch.Generator().manual_seed(1), noise_samples=2)
    assert plain.prefix_lengths is None
    assert torch.equal(plain.noise, noise.noise)
    assert torch.equal(plain.timesteps, noise.timesteps)
    rows = noise.select(slice(3, 5), torch.device("cpu")).prefix_lengths
    assert torch.equal(rows, noise.prefix_lengths[3:5])


def test_a_new_policy_computes_what_one_without_prefix_computes() -> None:
    """The mark of given tokens is zero at first, and takes no random numbers from other weights."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(tiny_config(obs="state", prefix_steps=N).policy).eval()
    torch.manual_seed(0)
    without = DiffusionPolicy(tiny_config(obs="state").policy).eval()
    weights = policy.state_dict()
    assert torch.equal(weights.pop("denoiser.prefix_emb"), torch.zeros(16))
    assert weights.keys() == without.state_dict().keys()
    assert all(torch.equal(x, weights[key]) for key, x in without.state_dict().items())
    assert "prefix_steps" not in without.config.model_dump()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm"])
def test_a_prediction_starts_with_its_prefix_and_depends_on_it(sampler: str) -> None:
    policy = make_policy(sampler=sampler, num_inference_steps=4, clip_sample=False)
    obs, prefix = random_obs(policy, 3), torch.rand(3, N, 7) - 0.5
    lengths = torch.tensor([0, 2, 4])

    def predict(prefix: Tensor) -> Tensor:
        return policy.predict_action(obs, torch.Generator().manual_seed(0), prefix, lengths)["action"]

    actions, changed = predict(prefix), predict(prefix + 0.1)
    plain = policy.predict_action(obs, torch.Generator().manual_seed(0))["action"]
    assert torch.equal(actions[0], plain[0])
    for i, length in enumerate(lengths):
        torch.testing.assert_close(actions[i, :length], prefix[i, :length])
        assert ((changed[i, length:] != actions[i, length:]).any(-1) == (length > 0)).all()


def test_the_mark_of_given_tokens_matters() -> None:
    policy = make_policy(clip_sample=False)
    obs, prefix = random_obs(policy, 1), torch.zeros(1, N, 7)

    def predict() -> Tensor:
        return policy.predict_action(obs, torch.Generator().manual_seed(0), prefix, torch.tensor([2]))["action"]

    actions = predict()
    assert policy.denoiser.prefix_emb is not None
    policy.denoiser.prefix_emb.data.zero_()
    assert (predict()[:, 2:] != actions[:, 2:]).any()


def test_policies_without_prefix_steps_refuse_a_prefix_unless_they_inpaint() -> None:
    policy = make_policy(prefix_steps=0)
    obs, prefix, length = random_obs(policy, 1), torch.zeros(1, 2, 7), torch.tensor([2])
    with pytest.raises(ConfigError, match="the policy takes no prefix") as e:
        policy.predict_action(obs, None, prefix, length)
    assert "prefix_steps=4" in e.value.hint
    with pytest.raises(ConfigError, match="the policy takes no prefix"):
        prefix_inputs(policy.config, prefix, 1)
    policy.set_inpainting_steps(2)
    actions = policy.predict_action(obs, None, prefix, length)["action"]
    torch.testing.assert_close(actions[:, :2], prefix)
    with pytest.raises(ConfigError, match="trained with prefix_steps 4"):
        make_policy().set_inpainting_steps(2)


def test_a_prefix_that_does_not_fit_is_refused() -> None:
    config = make_policy().config
    for shape in ((1, 5, 7), (2, 4, 7), (1, 4, 6)):
        with pytest.raises(ConfigError, match="up to 4 actions of 7 values"):
            prefix_inputs(config, torch.zeros(shape), 1)
    inputs = prefix_inputs(config, None, 3)
    assert (inputs["prefix"].shape, inputs["prefix_length"].tolist()) == ((3, 4, 7), [0, 0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"prefix_steps": 8}, "must be less than n_action_steps 8"), ({"obs_as_cond": False}, "needs obs_as_cond")],
)
def test_prefix_steps_are_validated(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_policy(**settings)


def test_a_prefix_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ConfigError, match="the prefix is not finite"):
        prefix_inputs(make_policy().config, torch.full((1, 2, 7), torch.nan), 1)
