"""Resizes images, the same at conversion, in evaluation and on a robot. Requires numpy only; this file may be copied.

Sides are scaled by a triangle filter that widens as images shrink (antialiasing), as PyTorch's and Pillow's bilinear
resizing do.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STRETCH, PAD, CROP = "stretch", "pad", "crop"
BLOCK = 8  # outputs that are computed together; by measurement


def resize(images: NDArray[np.uint8], size: Sequence[int], fit: str = STRETCH) -> NDArray[np.uint8]:
    """Images (..., H, W, C) as (..., h, w, C), `size` (h, w).

    `fit`: stretch scales both sides independently; pad keeps the proportions and adds black bars; crop keeps them and
    cuts what does not fit. Both are centred.
    """
    height, width = images.shape[-3:-1]
    if (height, width) == tuple(size):
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    result = np.zeros((len(flat), *size, images.shape[-1]), np.uint8)
    rows, columns, target_rows, target_columns = _regions((height, width), (size[0], size[1]), fit)
    for i, image in enumerate(flat):  # one by one: as numbers with decimals they take four times the memory
        part = image[rows, columns]
        height, width, channels = part.shape
        by_row = _scale(part.reshape(height, -1).astype(np.float32), target_rows.stop - target_rows.start)
        by_column = _scale(by_row.T.reshape(width, -1), target_columns.stop - target_columns.start)  # (w, C * h)
        by_column += 0.5  # rounds, as decimals are cut off
        scaled = by_column.astype(np.uint8).reshape(len(by_column), channels, -1).transpose(2, 0, 1)
        result[i, target_rows, target_columns] = scaled
    return result.reshape(*images.shape[:-3], *size, images.shape[-1])


def _scale(values: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """`values` (N, M) scaled along the first side, (n, M)."""
    result = np.empty((n, values.shape[1]), np.float32)
    for outputs, inputs, weights in _weights(len(values), n):
        np.matmul(weights, values[inputs], out=result[outputs])
    return result


def _regions(original: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[slice, slice, slice, slice]:
    """The rows and columns of the image that are used, and those of the result that they fill."""
    used, filled = list(original), list(size)
    if fit == PAD:
        scale = min(size[0] / original[0], size[1] / original[1])
        filled = [max(1, round(side * scale)) for side in original]
    elif fit == CROP:
        scale = max(size[0] / original[0], size[1] / original[1])
        used = [min(side, max(1, round(target / scale))) for side, target in zip(original, size)]
    elif fit != STRETCH:
        raise ValueError(f"fit '{fit}', expected {STRETCH}, {PAD} or {CROP}")
    (top, left), (y, x) = (
        [(whole - part) // 2 for whole, part in zip(sizes, parts)]
        for sizes, parts in ((original, used), (size, filled))
    )
    return (
        slice(top, top + used[0]), slice(left, left + used[1]), slice(y, y + filled[0]), slice(x, x + filled[1]),
    )  # fmt: skip


def ffmpeg_filter(original: tuple[int, int], size: tuple[int, int], fit: str) -> str:
    """An ffmpeg filter that resizes images of `original` (H, W) to `size` (h, w) as `resize` does.

    Values differ from those of `resize` by at most 1 (on average by 0.06 or less, none is preferred); in the outermost
    rows and columns by up to 24, since ffmpeg repeats the last pixel beyond the edge (with them, 0.11 or less on
    average). Measured with ffmpeg 7.0 and 9.0 on frames of real videos, which shrank by up to 13 times or grew.

    Frames become RGB before they are scaled. Scaled in YUV, they would be up to 1.5 brighter than in full size, where
    ffmpeg rounds them down.
    """
    rows, columns, target_rows, target_columns = _regions(original, size, fit)

    def box(y: slice, x: slice) -> str:
        return f"{x.stop - x.start}:{y.stop - y.start}"

    return (
        f"format=rgb24,crop={box(rows, columns)}:{columns.start}:{rows.start},"
        # Without the last flag, colors have half the resolution. The output in planes (gbrp) saves a third of the time.
        f"scale={box(target_rows, target_columns)}:flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp,"
        f"format=gbrp,pad={size[1]}:{size[0]}:{target_columns.start}:{target_rows.start}"
    )


@functools.lru_cache(maxsize=64)
def _weights(n_in: int, n_out: int) -> list[tuple[slice, slice, NDArray[np.float32]]]:
    """Some outputs along one side, the inputs that they depend on, and the share of each input in each output; for all
    outputs. Most of the matrix of all inputs and outputs is zero.
    """
    scale = n_in / n_out
    centers = (np.arange(n_out)[:, None] + 0.5) * scale
    distances = np.abs(np.arange(n_in)[None] + 0.5 - centers)
    weights = np.maximum(0.0, 1 - distances / max(scale, 1.0))
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    blocks = []
    for begin in range(0, n_out, BLOCK):
        used = np.flatnonzero(weights[begin : begin + BLOCK].any(axis=0))
        inputs = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append((slice(begin, begin + BLOCK), inputs, weights[begin : begin + BLOCK, inputs].copy()))
    return blocks
