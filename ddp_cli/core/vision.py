"""Image encoders: (N, C, H, W) in [-1, 1] to (N, 64) features per camera; C is 3, or 1 for grayscale.

`resnet18`, as published, ends in 32 keypoints by spatial soft-argmax (Finn et al. 2016, "Deep spatial autoencoders").
`small` ends in a linear layer over its whole feature map. Shapes: N images, K keypoints, h, w feature map or crop.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

N_KEYPOINTS = 32
IMAGE_FEATURE_DIM = 64


class SpatialSoftArgmax(nn.Module):
    """Expected position of each of K keypoints, x and y interleaved, in [-1, 1]: (N, C, h, w) -> (N, 2K)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.keypoints = nn.Conv2d(channels, N_KEYPOINTS, 1)

    def forward(self, x: Tensor) -> Tensor:
        heatmaps = self.keypoints(x).float()  # (N, K, h, w)
        h, w = heatmaps.shape[-2:]
        attention = heatmaps.flatten(2).softmax(-1).view_as(heatmaps)
        grid_x = torch.linspace(-1.0, 1.0, w, device=x.device, dtype=attention.dtype)
        grid_y = torch.linspace(-1.0, 1.0, h, device=x.device, dtype=attention.dtype)
        expected_x = (attention.sum(2) * grid_x).sum(-1)  # (N, K)
        expected_y = (attention.sum(3) * grid_y).sum(-1)
        return torch.stack([expected_x, expected_y], dim=-1).flatten(1)


class ImageEncoder(nn.Module):
    """Encoder of one camera, images of `shape` (H, W): backbone, keypoints or flattened feature map, linear, ReLU."""

    def __init__(self, kind: str, shape: tuple[int, int], channels: int = 3, width: int = 1) -> None:
        super().__init__()
        if kind == "resnet18":
            self.backbone: nn.Module = resnet18(channels)
            self.pool: nn.Module = SpatialSoftArgmax(512)
            pooled_dim, self.memory_format = 2 * N_KEYPOINTS, torch.channels_last
        else:
            self.backbone = small_cnn(channels, width)
            self.pool = nn.Flatten()
            pooled_dim = self.backbone(torch.zeros(1, channels, *shape)).numel()
            # Measured: with few channels GroupNorm loses more in channels_last than the convolutions gain.
            self.memory_format = torch.contiguous_format
        self.linear = nn.Linear(pooled_dim, IMAGE_FEATURE_DIM)
        self.to(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.backbone(x.contiguous(memory_format=self.memory_format)))).relu()


def resnet18(channels: int = 3) -> nn.Module:
    """Torchvision's ResNet-18 up to layer4 (512 channels), without pooling, GroupNorm of channels/16 groups."""
    import torchvision  # here, because it takes as long as PyTorch itself

    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(channels // 16, channels)

    net = torchvision.models.resnet18(weights=None, norm_layer=norm)
    if channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return nn.Sequential(*list(net.children())[:-2])


def small_cnn(channels: int = 3, width: int = 1) -> nn.Module:
    """Four convolutions to 32 x `width` channels on a map of 5x5 (crops of 76x76) or 6x6 (84x84). At 76x76 they take
    2.7 million multiply-adds with `width` 1, and 9.6 and 36 million with 2 and 4.

    Measured on square, 4 minutes of training on one core: the error of the regressed action chunk is .014 from the
    flattened map, .033 from keypoints on a map of 21x21.
    """

    def block(c_in: int, c_out: int, kernel: int, stride: int, pad: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, kernel, stride, pad), nn.GroupNorm(c_out // 8, c_out), nn.ReLU()]

    first, second, third, last = (width * n for n in (32, 48, 64, 32))
    blocks = [*block(channels, first, 4, 4, 0), *block(first, second, 3, 2, 1), *block(second, third, 3, 2, 1)]
    return nn.Sequential(*blocks, nn.Conv2d(third, last, 1))


def crop(x: Tensor, shape: tuple[int, int], crop_offsets: Tensor | None) -> Tensor:
    """Crops (N, 3, H, W) to `shape` (h, w): each image at its own `crop_offsets` (N, 2) (top, left), or, without, all
    at the center.
    """
    height, width = x.shape[-2:]
    h, w = shape
    if crop_offsets is None:
        top, left = center_crop_offset(height, h), center_crop_offset(width, w)
        return x[:, :, top : top + h, left : left + w]
    if x.device.type == "cpu":  # copying one image after the other is 30 times as fast as an index of pixels
        return _crop_each(x, shape, crop_offsets)
    rows = (crop_offsets[:, :1] + torch.arange(h, device=x.device))[:, :, None]  # (N, h, 1)
    columns = (crop_offsets[:, 1:] + torch.arange(w, device=x.device))[:, None, :]  # (N, 1, w)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[images, rows, columns].permute(0, 3, 1, 2)


def _crop_each(x: Tensor, shape: tuple[int, int], crop_offsets: Tensor) -> Tensor:
    h, w = shape
    images = x.permute(0, 2, 3, 1).numpy()
    crops = np.empty((len(images), h, w, images.shape[3]), images.dtype)
    for image, target, (top, left) in zip(images, crops, crop_offsets.tolist(), strict=True):
        target[...] = image[top : top + h, left : left + w]
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def center_crop_offset(size: int, cropped_size: int) -> int:
    """First row or column of a central crop, rounded as torchvision does for odd margins."""
    return round((size - cropped_size) / 2)


def sample_crop_offsets(
    n_images: int, size: tuple[int, int], shape: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Offsets (n_images, 2) (top, left) of independent random crops of `shape` (h, w) in images of `size` (H, W)."""
    n_offsets = [side - cropped + 1 for side, cropped in zip(size, shape, strict=True)]
    return torch.stack([torch.randint(0, n, (n_images,), generator=generator) for n in n_offsets], dim=1)
