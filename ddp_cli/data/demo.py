"""One recorded episode in memory. demo_file.py reads it, demo_writer.py writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Demo:
    """Simulator `states` (n, S) before each action and executed `actions` (n, Da), float64, n steps; S is 0 where no
    states were recorded.

    `xml`: the recorded model, may be empty. `seed`: of the reset, -1 where it was not recorded.
    `intended` (n, Da): the demonstrator's actions before disturbances were added, which are the ones to imitate; where
    a policy acted, what the demonstrator would have done instead.
    `obs`: the recorded observations that were requested, (n, ...) each.
    """

    states: NDArray[np.float64]
    actions: NDArray[np.float64]
    xml: str = ""
    seed: int = -1
    intended: NDArray[np.float64] | None = None
    name: str = ""
    obs: dict[str, NDArray[Any]] = field(default_factory=dict)
    policy_steps: int | None = None
    """Steps from the start in which a policy acted, the demonstrator in the rest; None in demos without a policy."""
    success: bool | None = None
    """Whether the episode ended with success; None where this was not recorded."""

    @property
    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """States and actions by their names in a file, (n, ...) each."""
        arrays = {"states": self.states, "actions": self.actions, "intended": self.intended}
        return {name: array for name, array in arrays.items() if array is not None and array.size}

    @property
    def target_actions(self) -> NDArray[np.float64]:
        """The actions (n, Da) to imitate: `intended` where it was recorded, otherwise the executed ones."""
        return self.actions if self.intended is None else self.intended
