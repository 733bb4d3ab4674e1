from __future__ import annotations

import torch

from ddp_cli.core.normalizer import Normalizer, column_normalizations
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.task_file import task_from_json


def test_values_are_scaled_by_their_range_except_quaternions_and_delta_actions() -> None:
    normalizer = Normalizer(column_normalizations(PolicyConfig()))
    data = {k: torch.rand(50, w) * 3 - 7 for k, w in (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("action", 7))}
    data["robot0_eef_pos"][:, 2] = 0.25  # constant
    normalizer.fit(data)
    x = normalizer.normalize("robot0_eef_pos", data["robot0_eef_pos"])
    torch.testing.assert_close(x[:, :2].amin(0), torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(x[:, :2].amax(0), torch.tensor([1.0, 1.0]))
    assert (x[:, 2] == 0).all()
    for key in ("robot0_eef_quat", "action"):
        assert torch.equal(normalizer.normalize(key, data[key]), data[key])
    torch.testing.assert_close(normalizer.unnormalize("robot0_eef_pos", x), data["robot0_eef_pos"])
    assert Normalizer.normalize_image(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_observations_of_described_tasks_are_scaled_by_their_range() -> None:
    low_dim = {"robot0_joint_vel": 7, "robot0_eef_quat_site": 4}
    task = task_from_json({"name": "door", "env_name": "Door", "low_dim": low_dim})
    normalizer = Normalizer(column_normalizations(PolicyConfig(task=task)))
    velocities, quaternions = torch.rand(50, 7) * 9, torch.rand(50, 4)
    normalizer.fit({"robot0_joint_vel": velocities, "robot0_eef_quat_site": quaternions})
    torch.testing.assert_close(normalizer.normalize("robot0_joint_vel", velocities).amin(0), -torch.ones(7))
    assert torch.equal(normalizer.normalize("robot0_eef_quat_site", quaternions), quaternions)


def test_a_shared_scale_of_zeros_leaves_them() -> None:
    data = {"object": torch.zeros(3, 2)}
    normalizer = Normalizer({"object": ["range"] * 2})
    normalizer.fit_shared_scale(data)
    assert torch.equal(normalizer.normalize("object", data["object"]), data["object"])


def test_shared_scale_is_the_largest_absolute_value_of_all_keys() -> None:
    normalizer = Normalizer({"robot0_eef_pos": ["range"] * 3, "object": ["range"] * 2})
    normalizer.fit({"robot0_eef_pos": torch.rand(9, 3), "object": torch.rand(9, 2)})  # sets offsets
    data = {"robot0_eef_pos": torch.tensor([[0.5, -4.0, 1.0]]), "object": torch.tensor([[3.0, 2.0]])}
    normalizer.fit_shared_scale(data)
    assert normalizer.normalize("object", torch.tensor([2.0, -4.0])).tolist() == [0.5, -1.0]
    assert normalizer.normalize("robot0_eef_pos", torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_gaussian_values_get_mean_0_and_standard_deviation_1() -> None:
    normalizer = Normalizer({"x": ["gaussian", "range", "identity", "gaussian"]})
    values = torch.rand(1000, 4) * 9 + 1000
    values[:, 3] = 5.0  # constant
    normalizer.fit({"x": values})
    x = normalizer.normalize("x", values)
    torch.testing.assert_close(x[:, 0].mean(), torch.tensor(0.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(x[:, 0].std(), torch.tensor(1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        torch.stack([x[:, 1].min(), x[:, 1].max()]), torch.tensor([-1.0, 1.0]), atol=1e-3, rtol=0
    )
    assert torch.equal(x[:, 2], values[:, 2])
    assert (x[:, 3] == 0).all()
