"""Overlays on images of an episode: predicted path, lines of text, borders. The only user of Pillow."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGBImage = NDArray[np.uint8]  # (H, W, 3)
Color = tuple[int, int, int]

PATH_START, PATH_MIDDLE, PATH_END = (255, 225, 60), (255, 60, 120), (120, 70, 255)  # yellow, magenta, violet
GREEN, RED, DARK, WHITE = (20, 140, 60), (205, 45, 45), (16, 18, 24), (255, 255, 255)
EXECUTED_OPACITY = 0.35  # of the part of a path that was executed
LABEL_OPACITY = 0.85
SUPERSAMPLING = 4  # paths are drawn at this multiple of the resolution, then reduced


def draw_path(image: RGBImage, pixels: NDArray[np.float64], executed: int) -> RGBImage:
    """A copy of `image` with the path through `pixels` (n, 2; nan where it is not visible), yellow to violet.

    The first `executed` of its n - 1 segments are translucent.
    """
    is_visible = np.isfinite(pixels).all(1)
    if is_visible.sum() < 2:
        return image
    width = max(1.5, min(image.shape[:2]) / 130)
    left, top = np.maximum(pixels[is_visible].min(0) - 3 * width, 0).astype(int)
    right, bottom = (pixels[is_visible].max(0) + 3 * width).astype(int) + 1
    crop = Image.fromarray(image[top:bottom, left:right])
    canvas = crop.resize((crop.width * SUPERSAMPLING, crop.height * SUPERSAMPLING), Image.Resampling.NEAREST)
    points = (pixels - (left, top)) * SUPERSAMPLING
    executed_part = canvas.copy()
    _draw_segments(executed_part, points, range(executed), width * SUPERSAMPLING)
    canvas = Image.blend(canvas, executed_part, EXECUTED_OPACITY)
    _draw_segments(canvas, points, range(executed, len(points) - 1), width * SUPERSAMPLING)
    result = image.copy()
    result[top:bottom, left:right] = np.asarray(canvas.reduce(SUPERSAMPLING))
    return result


def _draw_segments(image: Image.Image, points: NDArray[np.float64], segments: Sequence[int], width: float) -> None:
    draw, n = ImageDraw.Draw(image), len(points) - 1
    visible = [i for i in segments if np.isfinite(points[i : i + 2]).all()]
    for outline, is_outline in ((width * 0.7, True), (0.0, False)):  # a dark outline first, for contrast
        for i in visible:
            color = DARK if is_outline else _path_color((i + 0.5) / n)
            draw.line([*points[i], *points[i + 1]], fill=color, width=round(width + outline))
        for i in visible:  # dots at the positions after each action; they also cover the joints of the line
            color = DARK if is_outline else _path_color((i + 1) / n)
            draw.circle(tuple(points[i + 1]), width * (1.5 if i + 1 == n else 1.0) + outline / 2, fill=color)


def _path_color(t: float) -> Color:
    """Color at the fraction `t` of a path."""
    start, end, t = (PATH_START, PATH_MIDDLE, 2 * t) if t < 0.5 else (PATH_MIDDLE, PATH_END, 2 * t - 1)
    red, green, blue = (round(a + (b - a) * t) for a, b in zip(start, end, strict=True))
    return red, green, blue


OVERLAY_COLORS = (*(_path_color(i / 8) for i in range(9)), GREEN, RED)
"""The colors of overlays, without black and white: a GIF's palette must contain them."""


def draw_text(image: RGBImage, lines: Sequence[tuple[str, Color]]) -> RGBImage:
    """A copy of `image` with `lines` in its lower left corner, white on a background of the given color each.

    The lower corner, because arms enter the image from above.
    """
    base = Image.fromarray(image)
    labels = base.copy()
    draw, font = ImageDraw.Draw(labels), _font(max(11, round(min(image.shape[:2]) / 26)))
    margin, padding = border_width(image) + 1, max(2, round(font.size / 4))
    height = round(font.size) + 2 * padding
    tops = [image.shape[0] - margin - (len(lines) - i) * (height + 1) for i in range(len(lines))]
    for y, (line, color) in zip(tops, lines, strict=True):
        draw.rectangle((margin, y, margin + draw.textlength(line, font) + 2 * padding, y + height - 1), fill=color)
    result = Image.blend(base, labels, LABEL_OPACITY)
    draw = ImageDraw.Draw(result)
    for y, (line, _) in zip(tops, lines, strict=True):
        draw.text((margin + padding, y + height / 2), line, fill=WHITE, font=font, anchor="lm")
    return np.asarray(result)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def draw_border(image: RGBImage, color: Color, width: int) -> RGBImage:
    """A copy of `image` with a border of `color`, `width` pixels wide."""
    framed = np.full_like(image, color)
    framed[width:-width, width:-width] = image[width:-width, width:-width]
    return framed


def fit_image(image: RGBImage, size: int) -> RGBImage:
    """`image` resized to fit into (size, size, 3), in the middle of a dark background."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new("RGB", (size, size), DARK)
    resized = Image.fromarray(image).resize(shape, Image.Resampling.LANCZOS)
    canvas.paste(resized, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return np.asarray(canvas)


def border_width(image: RGBImage) -> int:
    """Width of a clearly visible border [pixels]."""
    return max(3, min(image.shape[:2]) // 60)
