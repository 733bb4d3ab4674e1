"""The demonstrations that are held out of training, to measure over-fitting.

Shapes: E episodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def validation_episodes(n_episodes: int, val_ratio: float, seed: int) -> NDArray[np.bool_]:
    """Mask (E,) of the held-out episodes: round(E * val_ratio) of them, at least 1, leaving at least 1 for training."""
    mask = np.zeros(n_episodes, dtype=bool)
    if val_ratio <= 0 or n_episodes < 2:
        return mask
    count = min(max(1, round(n_episodes * val_ratio)), n_episodes - 1)
    mask[np.random.default_rng(seed).choice(n_episodes, size=count, replace=False)] = True
    return mask
