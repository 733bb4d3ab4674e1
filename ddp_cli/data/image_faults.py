"""How a recorded image differs from the rendered one: upside down, mirrored, BGR, of another camera or step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_PSNR = 30.0  # [dB], of recorded images against rendered ones
MIN_GAIN = 3.0  # [dB], by which a flipped image (for example) must match better than the recorded one

Image = NDArray[np.uint8]
NO_NEIGHBORS: Mapping[int, Image] = {}
FLIPS = {"": (1, 1), "upside down": (-1, 1), "mirrored": (1, -1), "rotated by 180 degrees": (-1, -1)}


def describe_fault(
    image: Image, key: str, rendered: Mapping[str, Image], neighbors: Mapping[int, Image] = NO_NEIGHBORS
) -> str:
    """How `image`, recorded as `key`, differs from the image in `rendered`; empty if it does not.

    An image above MIN_PSNR is wrong, too, if it matches better when it is flipped, with its channels reversed, as the
    image of another camera, or of an earlier or later step (`neighbors`, by their offset): a small object, or a slow
    motion, hardly changes the PSNR.
    """
    as_recorded = psnr(rendered[key], image)
    best, fault = as_recorded + MIN_GAIN, ""
    for camera, reverse_channels, (flip, (rows, columns)) in itertools.product(rendered, (False, True), FLIPS.items()):
        candidate: NDArray[Any] = image[::rows, ::columns, :: -1 if reverse_channels else 1]
        value = psnr(rendered[camera], candidate)
        if value > best and value >= MIN_PSNR:
            parts = [flip] if flip else []
            parts += ["BGR instead of RGB"] if reverse_channels else []
            parts += [f"of the camera {camera}"] if camera != key else []
            best, fault = value, f"{key} is {' and '.join(parts)}"
    for offset, neighbor in neighbors.items():
        value = psnr(neighbor, image)
        if value > best:
            best, fault = value, f"{key} is of {'a later' if offset > 0 else 'an earlier'} step"
    if fault or as_recorded >= MIN_PSNR:
        return fault
    return f"{key} differs (PSNR {as_recorded:.0f} dB)"


def psnr(image: Image, reference: Image) -> float:
    """Peak signal-to-noise ratio of two images [dB], at most 99."""
    mean_squared_error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return 99.0 if mean_squared_error < 1e-5 else min(99.0, 10 * np.log10(255**2 / mean_squared_error))
