"""Per-key linear normalization y = x * scale + offset; scale and offset are saved with the weights of the policy.

Shapes: N steps in the store, d width of a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ddp_cli.policy_config import PolicyConfig
from ddp_cli.schema import Normalization

MIN_RANGE = 1e-4  # below it a value counts as constant


def column_normalizations(config: PolicyConfig) -> dict[str, list[Normalization]]:
    """How each value of every vector and of `action` is normalized (`schema.Normalization`)."""
    vectors = config.task.schema.vectors
    columns = {key: [vectors[key].normalization] * width for key, width in config.low_dim.items()}
    return {**columns, "action": [part.normalization for part in config.action_parts for _ in range(part.width)]}


class Normalizer(nn.Module):
    """Scale and offset (d,) of every vector and of `action`. Images are mapped from 0..255 to -1..1.

    `columns` {key: (d,)} says how each value is normalized (`schema.Normalization`).
    """

    def __init__(self, columns: Mapping[str, Sequence[Normalization]]) -> None:
        super().__init__()
        self.columns = columns
        for key, kinds in columns.items():
            self.register_buffer(f"{key}_scale", torch.ones(len(kinds)))
            self.register_buffer(f"{key}_offset", torch.zeros(len(kinds)))

    def fit(self, data: Mapping[str, Tensor]) -> None:
        """Sets scale and offset from `data` {key: (N, d)}. A value whose range is below 1e-4 is only shifted to 0."""
        for key, values in data.items():
            kinds = self.columns[key]
            low, high = values.amin(0), values.amax(0)
            varies = high - low >= MIN_RANGE
            scales = {"range": 2.0 / (high - low).clamp_min(1e-8)}
            offsets = {"range": -1.0 - scales["range"] * low}
            if "gaussian" in kinds:
                std, mean = torch.std_mean(values.double(), 0, correction=0)
                scales["gaussian"] = (1.0 / std.clamp_min(1e-8)).to(values.dtype)
                offsets["gaussian"] = (-mean / std.clamp_min(1e-8)).to(values.dtype)
            for kind in {*kinds} - {"identity"}:
                chosen = torch.tensor([k == kind for k in kinds])
                scale = torch.where(varies, scales[kind], torch.ones_like(low))
                offset = torch.where(varies, offsets[kind], -low)
                self.get_buffer(f"{key}_scale")[chosen] = scale[chosen]
                self.get_buffer(f"{key}_offset")[chosen] = offset[chosen]

    def fit_shared_scale(self, data: Mapping[str, Tensor]) -> None:
        """Sets one scale for all keys of `data` {key: (N, d)}, 1 / their largest absolute value, and no offset: the
        normalization of published state policies.
        """
        largest = max(float(values.abs().max()) for values in data.values()) or 1.0  # all are 0
        for key in data:
            self.get_buffer(f"{key}_scale").fill_(1.0 / largest)
            self.get_buffer(f"{key}_offset").zero_()

    def normalize(self, key: str, x: Tensor) -> Tensor:
        """Raw to normalized values (..., d)."""
        return x * self.get_buffer(f"{key}_scale") + self.get_buffer(f"{key}_offset")

    def unnormalize(self, key: str, x: Tensor) -> Tensor:
        """Normalized to raw values (..., d)."""
        return (x - self.get_buffer(f"{key}_offset")) / self.get_buffer(f"{key}_scale")

    def bounds(self, key: str) -> tuple[list[float], list[float]]:
        """The raw values (d,) that become -1 and 1."""
        ones = torch.ones_like(self.get_buffer(f"{key}_scale"))
        return self.unnormalize(key, -ones).tolist(), self.unnormalize(key, ones).tolist()

    @staticmethod
    def normalize_image(x: Tensor) -> Tensor:
        """uint8 0..255 to float32 -1..1."""
        return x.float().mul_(2.0 / 255.0).sub_(1.0)
