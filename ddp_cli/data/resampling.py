"""Recordings at a lower rate: which steps are kept, and what becomes of the actions in between.

Shapes: n recorded steps, m kept steps, Da action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import ConfigError
from ddp_cli.schema import ActionPart, action_slices

TOLERANCE = 1e-6  # [steps], so that whole multiples are not rounded down


@dataclass(frozen=True)
class Resampling:
    """From `recorded` Hz to `rate` Hz, which is lower. Without a change of the rate, everything stays as it is."""

    recorded: float
    rate: float

    @property
    def ratio(self) -> float:
        """Recorded steps per kept step, at least 1."""
        return self.recorded / self.rate

    def kept(self, n: int) -> NDArray[np.int64]:
        """(m,) the recorded steps that are kept: at each time of the lower rate, the last one before it or at it."""
        m = int((n - 1) / self.ratio + TOLERANCE) + 1
        return np.floor(np.arange(m) * self.ratio + TOLERANCE).astype(np.int64)

    def actions(self, actions: NDArray[Any], parts: Sequence[ActionPart]) -> NDArray[Any]:
        """(n, Da) -> (m, Da). An action lasts until the next kept step: motions are summed, everything else is the
        last value until then, where the recording was going.
        """
        starts = self.kept(len(actions))
        result = actions[np.append(starts[1:], len(actions)) - 1].copy()
        for part, values in zip(parts, action_slices(parts), strict=True):
            if part.representation == "delta":
                result[:, values] = np.add.reduceat(actions[:, values], starts, axis=0)
        return result

    def parts(self, parts: Sequence[ActionPart]) -> tuple[ActionPart, ...]:
        """The parts of the resampled actions: the limits of motions grow with their duration. ConfigError for motions
        that cannot be summed.
        """
        for part in parts:
            if part.representation == "delta" and part.rotation not in ("none", "axis-angle"):
                raise ConfigError(
                    f"the part '{part.name}' of the action is a delta {part.rotation}, which cannot be resampled.",
                    "Leave out --rate.",
                )
        longest = int(np.ceil(self.ratio - TOLERANCE))
        return tuple(
            part.model_copy(update={field: _scaled(getattr(part, field), longest) for field in ("low", "high")})
            if part.representation == "delta"
            else part
            for part in parts
        )

    def describe(self, parts: Sequence[ActionPart]) -> str:
        """What was done, for the report."""
        summed = [part.name for part in parts if part.representation == "delta"]
        taken = [part.name for part in parts if part.representation != "delta"]
        actions = [
            f"{names} {verb}" for names, verb in ((", ".join(summed), "summed"), (", ".join(taken), "taken")) if names
        ]
        return f"resampled from {self.recorded:g} to {self.rate:g} Hz; actions: {', '.join(actions)}"


def _scaled(bounds: Sequence[float | None], factor: int) -> tuple[float | None, ...]:
    return tuple(None if bound is None else bound * factor for bound in bounds)
