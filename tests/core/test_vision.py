from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from ddp_cli.core.vision import ImageEncoder, SpatialSoftArgmax, crop, sample_crop_offsets


def test_soft_argmax_points_at_the_peak() -> None:
    layer = SpatialSoftArgmax(1)
    nn.init.constant_(layer.keypoints.weight, 1.0)
    nn.init.zeros_(layer.keypoints.bias)
    x = torch.zeros(1, 1, 5, 9)
    x[0, 0, 4, 2] = 100.0  # bottom row, a quarter of the width
    points = layer(x).view(32, 2)
    torch.testing.assert_close(points, torch.tensor([[-0.5, 1.0]]).expand(32, 2))


@pytest.mark.parametrize(("kind", "width"), [("resnet18", 1), ("small", 1), ("small", 2), ("small", 4)])
def test_encoders_have_64_features_and_gradients(kind: str, width: int) -> None:
    encoder = ImageEncoder(kind, (76, 76), width=width)
    features = encoder(torch.randn(2, 3, 76, 76))
    assert features.shape == (2, 64)
    features.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_resnet_has_group_norm_of_16_channels() -> None:
    norms = [m for m in ImageEncoder("resnet18", (76, 76)).modules() if isinstance(m, nn.GroupNorm | nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(isinstance(m, nn.GroupNorm) and m.num_channels == 16 * m.num_groups for m in norms)


def test_random_crops_are_sampled_per_image() -> None:
    x = torch.arange(84 * 84).view(1, 1, 84, 84).expand(64, 3, 84, 84)
    offsets = sample_crop_offsets(64, (84, 84), (76, 76), torch.Generator().manual_seed(0))
    y = crop(x, (76, 76), offsets)
    assert {int(offset) for offset in offsets.flatten()} == set(range(9))
    first_pixels = y[:, 0, 0, 0]
    assert len(set(first_pixels.tolist())) > 30  # of 81 positions
    for image, first_pixel in zip(y, first_pixels, strict=True):
        top, left = divmod(int(first_pixel), 84)
        assert torch.equal(image, x[0, :, top : top + 76, left : left + 76])


def test_without_offsets_the_crop_is_central() -> None:
    x = torch.randn(2, 3, 84, 84)
    assert torch.equal(crop(x, (76, 76), None), x[:, :, 4:80, 4:80])
    for side in range(64, 85):
        assert torch.equal(crop(x, (side, 84), None), torchvision.transforms.functional.center_crop(x, [side, 84]))
