"""Exponential moving average (EMA) of the policy's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Moving average of `parameters`, which are updated in place by the optimizer.

    The decay rises with the number of steps n as 1 - (1 + n / inv_gamma) ** -power, up to `max_decay`, as in the
    published code; the first step copies the parameters. diffusers' EMAModel computes the same.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], inv_gamma: float = 1.0, power: float = 0.75, max_decay: float = 0.9999
    ) -> None:
        self.inv_gamma, self.power, self.max_decay = inv_gamma, power, max_decay
        self.steps = 0
        self.shadow: list[Tensor] = [p.detach().clone() for p in parameters]
        """The averages, in the order of the parameters."""
        self._parameters: list[Tensor] = list(parameters)

    @property
    def decay(self) -> float:
        """The decay of the last step."""
        n = max(0, self.steps - 2)  # the published code counts steps from 0 and leaves the first one out
        return min(self.max_decay, 1.0 - (1.0 + n / self.inv_gamma) ** -self.power)

    @torch.no_grad()
    def step(self) -> None:
        """Move the averages towards the parameters; called after each step of the optimizer."""
        self.steps += 1
        torch._foreach_lerp_(self.shadow, self._parameters, 1.0 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the parameters have their averages as values."""
        raw = [p.detach().clone() for p in self._parameters]
        self._set(self.shadow)
        try:
            yield
        finally:
            self._set(raw)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
