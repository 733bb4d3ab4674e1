"""Per-key linear normalization y = x * scale + offset; scale and offset are saved with the weights of the policy.

Shapes: N steps in the store, d width of a key.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddp_cli.tasks import ACTIONS


def n_range_scaled(key: str, width: int) -> int:
    """How many of the first values of `key` are scaled to [-1, 1] by their range in the store: all of them, except
    quaternions, rotations and delta actions, which are not changed.
    """
    if key == "action":
        return 3 if width == ACTIONS["absolute"]["dim"] else 0
    return 0 if "quat" in key else width


class Normalizer(nn.Module):
    """Scale and offset (d,) of every low-dimensional key and of `action`. Images are mapped from 0..255 to -1..1."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        for key, width in widths.items():
            self.register_buffer(f"{key}_scale", torch.ones(width))
            self.register_buffer(f"{key}_offset", torch.zeros(width))

    def fit(self, data: Mapping[str, Tensor]) -> None:
        """Sets scale and offset of the range-scaled values (`n_range_scaled`) from `data` {key: (N, d)}.

        A value whose range is below 1e-4 is only shifted to 0.
        """
        for key, values in data.items():
            columns = n_range_scaled(key, values.shape[1])
            low, high = values[:, :columns].amin(0), values[:, :columns].amax(0)
            varies = high - low >= 1e-4
            scale = torch.where(varies, 2.0 / (high - low).clamp_min(1e-8), torch.ones_like(low))
            offset = torch.where(varies, -1.0 - scale * low, -low)
            self.get_buffer(f"{key}_scale")[:columns] = scale
            self.get_buffer(f"{key}_offset")[:columns] = offset

    def fit_shared_scale(self, data: Mapping[str, Tensor]) -> None:
        """Sets one scale for all keys of `data` {key: (N, d)}, 1 / their largest absolute value, and no offset: the
        normalization of published state policies.
        """
        largest = max(float(values.abs().max()) for values in data.values())
        for key in data:
            self.get_buffer(f"{key}_scale").fill_(1.0 / largest)
            self.get_buffer(f"{key}_offset").zero_()

    def normalize(self, key: str, x: Tensor) -> Tensor:
        """Raw to normalized values (..., d)."""
        return x * self.get_buffer(f"{key}_scale") + self.get_buffer(f"{key}_offset")

    def unnormalize(self, key: str, x: Tensor) -> Tensor:
        """Normalized to raw values (..., d)."""
        return (x - self.get_buffer(f"{key}_offset")) / self.get_buffer(f"{key}_scale")

    @staticmethod
    def normalize_image(x: Tensor) -> Tensor:
        """uint8 0..255 to float32 -1..1."""
        return x.float().mul_(2.0 / 255.0).sub_(1.0)
