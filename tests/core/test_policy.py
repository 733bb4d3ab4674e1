from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import DOOR, tiny_config
from torch import Tensor

from ddp_cli.config import PolicyConfig
from ddp_cli.core.normalizer import Normalizer
from ddp_cli.core.policy import FUSED, DiffusionPolicy, TrainingNoise
from ddp_cli.inference.agent import PolicyAgent


def policy(**changes: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(tiny_config(**changes).policy).eval()


def observations(p: DiffusionPolicy, batch: int = 2) -> dict[str, Tensor]:
    to = p.config.n_obs_steps
    obs = {k: torch.randint(0, 256, (batch, to, 3, 84, 84), dtype=torch.uint8) for k in p.config.image_keys}
    return obs | {k: torch.randn(batch, to, width) for k, width in p.config.low_dim.items()}


@pytest.mark.parametrize(("obs", "width"), [("image", 2 * 64 + 9), ("state", 10 + 9)])
def test_features_are_cameras_then_low_dim(obs: str, width: int) -> None:
    p = policy(obs=obs)
    seen = observations(p)
    features = p.encode_obs(seen)
    assert features.shape == (2, 2, width)
    torch.testing.assert_close(features[..., -2:], seen["robot0_gripper_qpos"])


def test_fusion_adds_features_of_one_step_alone() -> None:
    p = policy(obs="state", fusion=16)
    seen = observations(p)
    features = p.encode_obs(seen)
    assert features.shape == (2, 2, 10 + 9 + FUSED)
    assert torch.equal(features[..., :19], policy(obs="state").encode_obs(seen))
    seen["object"][:, 1] += 0.1
    changed = (p.encode_obs(seen) != features).any(-1)
    assert changed.tolist() == [[False, True]] * 2


def test_action_is_the_part_of_the_chunk_from_the_last_observation_on() -> None:
    p = policy()
    result = p.predict_action(observations(p), torch.Generator().manual_seed(1))
    assert result["action_pred"].shape == (2, 10, 7)
    assert torch.equal(result["action"], result["action_pred"][:, 1:9])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_generator_decides_the_sample(sampler: str) -> None:
    p = policy(sampler=sampler)
    seen = observations(p)
    one, same, other = (p.predict_action(seen, torch.Generator().manual_seed(s))["action"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_ddpm_with_all_steps_recovers_a_known_trajectory() -> None:
    """A denoiser that knows the truth leads the chain to it."""
    p = policy(sampler="ddpm", num_inference_steps=100)
    truth = torch.rand(2, 10, 7) * 2 - 1
    alphas = p.noising.alphas_cumprod

    def oracle(x: Tensor, k: Tensor, _cond: Tensor) -> Tensor:
        a = alphas[k]
        return (x - a.sqrt() * truth) / (1 - a).sqrt()

    p.denoiser.forward = oracle
    result = p.predict_action(observations(p), torch.Generator().manual_seed(0))["action_pred"]
    torch.testing.assert_close(result, truth, atol=1e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_loss_is_the_mean_squared_error_of_what_is_predicted(prediction: str) -> None:
    p = policy(prediction_type=prediction)
    seen, action = observations(p), torch.rand(2, 10, 7)
    noise, steps = torch.randn(2, 10, 7), torch.tensor([3, 90])
    loss = p.compute_loss({"obs": seen, "action": action}, TrainingNoise({}, noise[:, None], steps[:, None]))
    a = p.noising.alphas_cumprod[steps][:, None, None]
    noisy = a.sqrt() * action + (1 - a).sqrt() * noise
    predicted = p.denoiser(noisy, steps, p.encode_obs(seen))
    target = noise if prediction == "epsilon" else action
    torch.testing.assert_close(loss, ((predicted - target) ** 2).mean())


def test_several_noise_levels_share_one_encoding() -> None:
    p = policy()
    batch = {"obs": observations(p), "action": torch.rand(2, 10, 7)}
    noise, steps = torch.randn(2, 3, 10, 7), torch.arange(6).view(2, 3) * 10
    together = p.compute_loss(batch, TrainingNoise({}, noise, steps))
    parts = [p.compute_loss(batch, TrainingNoise({}, noise[:, i : i + 1], steps[:, i : i + 1])) for i in range(3)]
    torch.testing.assert_close(together, torch.stack(parts).mean())


def test_normalizer_maps_the_range_to_one_and_spares_quaternions() -> None:
    n = Normalizer({"robot0_eef_pos": 3, "robot0_eef_quat": 4, "action": 7})
    data = {k: torch.rand(50, w) * 3 - 7 for k, w in (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("action", 7))}
    data["robot0_eef_pos"][:, 2] = 0.25  # never moves
    n.fit(data)
    x = n.normalize("robot0_eef_pos", data["robot0_eef_pos"])
    torch.testing.assert_close(x[:, :2].amin(0), torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(x[:, :2].amax(0), torch.tensor([1.0, 1.0]))
    assert (x[:, 2] == 0).all()
    for key in ("robot0_eef_quat", "action"):
        assert torch.equal(n.normalize(key, data[key]), data[key])
    torch.testing.assert_close(n.unnormalize("robot0_eef_pos", x), data["robot0_eef_pos"])
    assert Normalizer.image(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_observations_of_described_tasks_are_scaled_by_their_range() -> None:
    n = Normalizer({"robot0_joint_vel": 7, "robot0_eef_quat_site": 4})
    data = {"robot0_joint_vel": torch.rand(50, 7) * 9, "robot0_eef_quat_site": torch.rand(50, 4)}
    n.fit(data)
    torch.testing.assert_close(n.normalize("robot0_joint_vel", data["robot0_joint_vel"]).amin(0), -torch.ones(7))
    assert torch.equal(n.normalize("robot0_eef_quat_site", data["robot0_eef_quat_site"]), data["robot0_eef_quat_site"])


def test_a_policy_may_see_nothing_but_a_camera() -> None:
    config = PolicyConfig(task=DOOR | {"low_dim": {}}, encoder="small", n_layer=1, n_emb=16, num_inference_steps=1)
    policy = DiffusionPolicy(config).eval()
    obs = {"frontview_image": torch.zeros(1, 2, 3, 84, 84, dtype=torch.uint8)}
    assert policy.predict_action(obs)["action"].shape == (1, 8, 7)


def test_the_published_rule_of_state_policies_is_one_scale() -> None:
    n = Normalizer({"robot0_eef_pos": 3, "object": 2})
    n.fit({"robot0_eef_pos": torch.rand(9, 3), "object": torch.rand(9, 2)})  # leaves offsets behind
    n.fit_shared({"robot0_eef_pos": torch.tensor([[0.5, -4.0, 1.0]]), "object": torch.tensor([[3.0, 2.0]])})
    assert n.normalize("object", torch.tensor([2.0, -4.0])).tolist() == [0.5, -1.0]
    assert n.normalize("robot0_eef_pos", torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_set_sampler_is_checked() -> None:
    p = policy()
    p.set_sampler("ddpm", 7)
    assert (p.config.sampler, p.config.num_inference_steps) == ("ddpm", 7)
    p.set_sampler("ddim", None)
    assert (p.config.sampler, p.config.num_inference_steps) == ("ddim", 100)
    with pytest.raises(ValueError, match="101"):
        p.set_sampler(None, 101)


def test_agent_depends_on_nothing_but_seed_and_history() -> None:
    agent = PolicyAgent(policy())
    seen = observations(agent.policy, 1)
    history = [
        {k: (v[0, i].permute(1, 2, 0) if v.ndim == 5 else v[0, i]).numpy() for k, v in seen.items()} for i in (0, 1)
    ]
    agent.reset(5)
    first = agent.act(history)
    second = agent.act(history)
    agent.reset(5)
    np.testing.assert_array_equal(agent.act(history), first)
    assert first.shape == (8, 7)
    assert not np.array_equal(first, second)
    generator = torch.Generator().manual_seed(5)
    np.testing.assert_allclose(agent.policy.predict_action(seen, generator)["action"][0], first, atol=1e-5)


def test_paper_configuration_has_the_published_size() -> None:
    p = DiffusionPolicy(PolicyConfig(task="square"))
    assert sum(x.numel() for x in p.denoiser.parameters()) == pytest.approx(9.0e6, rel=0.05)
