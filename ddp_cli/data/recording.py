"""A recording of any robot, as it is converted without a simulator: named arrays, of one row per step, in episodes.

Every format has a class with this interface; what an array means is said by a schema (recording_schema.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DataError
from ddp_cli.schema import Camera

Episode = dict[str, NDArray[Any]]
MIN_SIDE = 8  # [pixels] of an image that is not uint8: smaller ones are keypoints or other matrices
MIN_WHITE = 16  # largest value of an image of 0 to 255 with decimals: what stays below is in another unit


@dataclass(frozen=True)
class StepArray:
    """Shape and type of one step of an array, and the names of its elements where they are known."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    names: tuple[str, ...] = ()

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers or booleans."""
        return self.dtype.kind in "fiub"

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) of an image, channels last or first; None for anything else."""
        if len(self.shape) != 3 or not self.is_numeric or not {self.shape[0], self.shape[2]} & {1, 3}:
            return None
        height, width, channels = self.shape if self.shape[2] in (1, 3) else (*self.shape[1:], self.shape[0])
        is_matrix = self.dtype != np.uint8 and min(height, width) < MIN_SIDE
        return None if is_matrix else (height, width, channels)


class Recording(Protocol):
    """Episodes of arrays. Every fault is a DataError that names the path."""

    kind: str
    path: Path
    arrays: dict[str, StepArray]
    """By their path in the recording, such as `data/state` or `observation.state`."""
    observations: list[str]
    """Arrays that a policy observes, unless others are chosen."""
    unreadable: dict[str, str]
    """Arrays that cannot be read, which are not among `arrays` -> why."""
    action: str
    """The array that holds the actions, unless another one is chosen."""
    rate: float | None
    """The control rate [Hz], None if the recording does not state it."""
    default_rate: float | None
    """The control rate [Hz] that recordings of this kind have, None if any."""
    lengths: list[int]
    """Steps of each episode."""
    episode_names: list[str]
    instructions: list[str]
    """What each episode shows, in words, empty where the recording does not say."""
    notes: list[str]
    in_videos: list[str]
    """Arrays of images that are decoded from videos, each by a process of its own."""

    def read(self, array: str, episode: int) -> NDArray[Any]:
        """The values of `array` in an episode, (n, ...), as recorded."""

    def iter_images(
        self, array: str, episode: int, exact: bool = True, camera: Camera | None = None
    ) -> Iterator[NDArray[Any]]:
        """The images of an array in an episode, one by one as recorded. Those of videos and encoded ones are decoded on
        the way. Without `exact`, images of a video may be those of the step before or after: finding an episode in a
        long video is faster then. With `camera`, images of a video may come resized to it: that takes less time.
        """

    def faults(self, arrays: Collection[str]) -> dict[int, str]:
        """Episodes that cannot be read, as far as is known without decoding `arrays` -> fault. May add to `notes`."""

    def sha256(self) -> str:
        """Hash of the content."""


def describe_unobserved(unreadable: Mapping[str, str]) -> list[str]:
    """Notes on the arrays that cannot be read -> why."""
    return [f"{name}: {why}; it is not observed" for name, why in unreadable.items()]


def to_images(values: NDArray[Any], is_fraction: bool, where: str) -> NDArray[np.uint8]:
    """Images (n, height, width, channels) uint8 from `values`, whose channels may be first.

    Numbers with decimals are rounded; with `is_fraction` they are 0 to 1. DataError if they are out of range.
    """
    if values.shape[-1] not in (1, 3):
        values = values.transpose(0, 2, 3, 1)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    scaled = values.astype(np.float32) * (255 if is_fraction else 1)
    low, high = float(scaled.min()), float(scaled.max())
    if not (low >= -0.5 and high <= 255.5):  # also refuses nan
        limit = "0 to 1" if is_fraction else "0 to 255"
        factor = 255 if is_fraction else 1
        raise DataError(f"{where}: the images are {low / factor:g} to {high / factor:g}, expected {limit}.")
    return np.ascontiguousarray(scaled.round().clip(0, 255).astype(np.uint8))


def check_are_images(values: NDArray[Any], where: str) -> None:
    """DataError if floating-point `values` are neither of 0 to 1 nor of 0 to 255, but for example depths [m]."""
    high = float(values.max())
    if values.dtype.kind == "f" and 1 < high < MIN_WHITE and (values % 1).any():
        raise DataError(
            f"{where}: the values are {float(values.min()):g} to {high:g} with decimals, not those of an image, which "
            "are 0 to 1 or 0 to 255.",
            "Choose other arrays with --keys.",
        )


def are_fractions(values: NDArray[Any]) -> bool:
    """Whether images are of 0 to 1, not of 0 to 255: booleans, or numbers with decimals up to 1."""
    return values.dtype.kind in "fb" and float(values.max()) <= 1.0
