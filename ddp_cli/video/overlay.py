"""What is drawn over pictures of an episode: the predicted path, lines of text, a frame; the only user of Pillow."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]  # (H, W, 3)
Colour = tuple[int, int, int]

NEAR, MIDDLE, FAR = (255, 225, 60), (255, 60, 120), (120, 70, 255)
GREEN, RED, DARK, WHITE = (20, 140, 60), (205, 45, 45), (16, 18, 24), (255, 255, 255)
DIM = 0.35  # opacity of what of a path is past
SMOOTH = 4  # a path is drawn this many times larger, then reduced


def draw_path(picture: Picture, pixels: NDArray[np.float64], done: int) -> Picture:
    """`picture` with the path through `pixels` (n, 2; nan where it is not seen), yellow to violet along it.

    The first `done` of its n - 1 steps are dimmer.
    """
    seen = np.isfinite(pixels).all(1)
    if seen.sum() < 2:
        return picture
    width = max(1.5, min(picture.shape[:2]) / 130)
    left, top = np.maximum(pixels[seen].min(0) - 3 * width, 0).astype(int)
    right, bottom = (pixels[seen].max(0) + 3 * width).astype(int) + 1
    crop = Image.fromarray(picture[top:bottom, left:right])
    large = crop.resize((crop.width * SMOOTH, crop.height * SMOOTH), Image.Resampling.NEAREST)
    points = (pixels - (left, top)) * SMOOTH
    past = large.copy()
    _stroke(past, points, range(done), width * SMOOTH)
    large = Image.blend(large, past, DIM)
    _stroke(large, points, range(done, len(points) - 1), width * SMOOTH)
    result = picture.copy()
    result[top:bottom, left:right] = np.asarray(large.reduce(SMOOTH))
    return result


def _stroke(image: Image.Image, points: NDArray[np.float64], steps: Sequence[int], width: float) -> None:
    draw, n = ImageDraw.Draw(image), len(points) - 1
    whole = [i for i in steps if np.isfinite(points[i : i + 2]).all()]
    for extra, dot in ((width * 0.7, None), (0.0, 1.0)):  # a dark rim first, so that it shows on any picture
        for i in whole:
            colour = _gradient((i + 0.5) / n) if dot else DARK
            draw.line([*points[i], *points[i + 1]], fill=colour, width=round(width + extra))
        for i in whole:  # where the hand will be after each action; they also cover the joints of the line
            colour = _gradient((i + 1) / n) if dot else DARK
            draw.circle(tuple(points[i + 1]), width * (1.5 if i + 1 == n else 1.0) + extra / 2, fill=colour)


def _gradient(t: float) -> Colour:
    one, other, t = (NEAR, MIDDLE, 2 * t) if t < 0.5 else (MIDDLE, FAR, 2 * t - 1)
    red, green, blue = (round(a + (b - a) * t) for a, b in zip(one, other, strict=True))
    return red, green, blue


COLOURS = (*(_gradient(i / 8) for i in range(9)), GREEN, RED)  # all that is more than black or white


def draw_text(picture: Picture, lines: Sequence[tuple[str, Colour]]) -> Picture:
    """`picture` with `lines` in its lower left corner, each white on a plate of its colour: robots come from above."""
    image = Image.fromarray(picture)
    over = image.copy()
    draw, font = ImageDraw.Draw(over), _font(max(11, round(min(picture.shape[:2]) / 26)))
    margin, pad = frame_width(picture) + 1, max(2, round(font.size / 4))
    height = round(font.size) + 2 * pad
    tops = [picture.shape[0] - margin - (len(lines) - i) * (height + 1) for i in range(len(lines))]
    for y, (line, colour) in zip(tops, lines, strict=True):
        draw.rectangle((margin, y, margin + draw.textlength(line, font) + 2 * pad, y + height - 1), fill=colour)
    image = Image.blend(image, over, 0.85)
    draw = ImageDraw.Draw(image)
    for y, (line, _) in zip(tops, lines, strict=True):
        draw.text((margin + pad, y + height / 2), line, fill=WHITE, font=font, anchor="lm")
    return np.asarray(image)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def draw_frame(picture: Picture, colour: Colour, width: int) -> Picture:
    """`picture` with a frame of `colour` along its edge, `width` pixels."""
    framed = np.full_like(picture, colour)
    framed[width:-width, width:-width] = picture[width:-width, width:-width]
    return framed


def frame_width(picture: Picture) -> int:
    """[pixels], of a frame that is to be noticed."""
    return max(3, min(picture.shape[:2]) // 60)
