"""Disturbances of scripted demonstrations, from which policies learn to recover: noise, pushes, and gripper slips."""

from __future__ import annotations

import numpy as np

from ddp_cli.rotation import Array


class Disturbances:
    """Noise correlated over about five steps, pushes of three to eight steps, and gripper slips: the gripper command
    is inverted for four to eight steps.
    """

    NOISE_STD, NEAR_CONTACT_SCALE = 0.1, 0.4
    PUSH_PROBABILITY, SLIP_PROBABILITY = 0.015, 0.008  # per step

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._noise, self._push, self._push_steps = np.zeros(6), np.zeros(6), 0
        self._slip_steps = 0

    def apply(self, action: Array, near_contact: bool) -> Array:
        """`action` (7,) with the disturbance of the next step added."""
        rng = self.rng
        white_noise = self.NOISE_STD * rng.normal(size=6) * [1, 1, 1, 0.35, 0.35, 0.35]
        self._noise = 0.8 * self._noise + 0.6 * white_noise
        if not self._push_steps and rng.random() < self.PUSH_PROBABILITY:
            self._push_steps = int(rng.integers(3, 9))
            self._push = np.concatenate(
                [_random_direction(rng) * rng.uniform(0.2, 1.0), _random_direction(rng) * rng.uniform(0, 0.5)]
            )
        disturbance = self._noise + (self._push if self._push_steps else 0.0)
        self._push_steps = max(0, self._push_steps - 1)
        if not self._slip_steps and rng.random() < self.SLIP_PROBABILITY:
            self._slip_steps = int(rng.integers(4, 9))
        gripper = -action[6] if self._slip_steps else action[6]
        self._slip_steps = max(0, self._slip_steps - 1)
        disturbed = action[:6] + disturbance * (self.NEAR_CONTACT_SCALE if near_contact else 1.0)
        return np.append(np.clip(disturbed, -1.0, 1.0), gripper)


def _random_direction(rng: np.random.Generator) -> Array:
    v = rng.normal(size=3)
    return np.asarray(v / np.linalg.norm(v))
