"""Per-key linear normalisation y = x * scale + offset, part of the policy's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddp_cli.tasks import ACTIONS


def n_range_scaled(key: str, width: int) -> int:
    """How many of the first values of `key` are scaled to [-1, 1] by their range in the store: all of them,
    except that quaternions, rotations and delta actions stay as they are.
    """
    if key == "action":
        return 3 if width == ACTIONS["absolute"]["dim"] else 0
    return 0 if "quat" in key else width


class Normalizer(nn.Module):
    """Scale and offset (d,) of every low-dimensional key and of `action`. Images: 0..255 -> -1..1."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        for key, width in widths.items():
            self.register_buffer(f"{key}_scale", torch.ones(width))
            self.register_buffer(f"{key}_offset", torch.zeros(width))

    def fit(self, data: Mapping[str, Tensor]) -> None:
        """Takes scale and offset of what goes `n_range_scaled` from `data` {key: (N, d)}.

        A value that hardly varies (range below 1e-4) is only shifted to 0.
        """
        for key, values in data.items():
            columns = n_range_scaled(key, values.shape[1])
            low, high = values[:, :columns].amin(0), values[:, :columns].amax(0)
            varies = high - low >= 1e-4
            scale = torch.where(varies, 2.0 / (high - low).clamp_min(1e-8), torch.ones_like(low))
            offset = torch.where(varies, -1.0 - scale * low, -low)
            self.get_buffer(f"{key}_scale")[:columns] = scale
            self.get_buffer(f"{key}_offset")[:columns] = offset

    def fit_shared(self, data: Mapping[str, Tensor]) -> None:
        """The published rule of state policies: one scale for everything observed, 1 / the largest absolute
        value of all `data` {key: (N, d)}, and no offset.
        """
        largest = max(float(values.abs().max()) for values in data.values())
        for key in data:
            self.get_buffer(f"{key}_scale").fill_(1.0 / largest)
            self.get_buffer(f"{key}_offset").zero_()

    def normalize(self, key: str, x: Tensor) -> Tensor:
        """Raw values -> what the network sees."""
        return x * self.get_buffer(f"{key}_scale") + self.get_buffer(f"{key}_offset")

    def unnormalize(self, key: str, x: Tensor) -> Tensor:
        """What the network says -> raw values."""
        return (x - self.get_buffer(f"{key}_offset")) / self.get_buffer(f"{key}_scale")

    @staticmethod
    def image(x: Tensor) -> Tensor:
        """uint8 0..255 -> float -1..1."""
        return x.float().mul_(2.0 / 255.0).sub_(1.0)
