"""Overlays: paths, text and borders."""

from __future__ import annotations

import numpy as np
import pytest

from ddp_cli.video.overlay import DARK, GREEN, draw_border, draw_path, draw_text


def test_path_is_drawn_at_its_pixels_and_the_executed_part_is_translucent() -> None:
    gray = np.full((256, 256, 3), 128, np.uint8)
    pixels = np.stack([np.linspace(40, 216, 9), np.full(9, 100.0)], 1)
    drawn = draw_path(gray, pixels, 4).astype(int)
    changed = np.abs(drawn - 128).max(2)
    rows, columns = np.nonzero(changed)
    assert (rows.min() > 85) & (rows.max() < 115)
    assert (columns.min() > 30) & (columns.max() < 226)
    assert changed[100, 45:125].mean() < 0.6 * changed[100, 130:210].mean()
    assert changed[100, 45:125].min() > 5
    start, end = drawn[100, 50], drawn[100, 214]
    assert start[2] < start[0]  # yellow
    assert end[2] > end[0]  # violet
    assert (gray == 128).all()


def test_path_skips_points_that_are_not_visible() -> None:
    gray = np.full((128, 128, 3), 128, np.uint8)
    pixels = np.stack([np.linspace(10, 120, 8), np.full(8, 60.0)], 1)
    pixels[3:5] = np.nan
    changed = (draw_path(gray, pixels, 0) != 128).any(2)
    assert changed[60, 12:35].all()
    assert not changed[:, 50:80].any()
    assert changed[60, 95:118].all()
    assert (draw_path(gray, np.full((8, 2), np.nan), 0) == gray).all()
    diagonal = draw_path(gray, np.array([[0.0, 0.0], [128.0, 128.0]]), 0)  # from corner to corner
    assert (diagonal[64, 64] != 128).any()


@pytest.mark.parametrize("size", [512, 170])
@pytest.mark.parametrize("shade", [0, 255])
def test_text_is_legible_on_light_and_dark_images(size: int, shade: int) -> None:
    image = np.full((size, size, 3), shade, np.uint8)
    drawn = draw_text(image, [("step 123/400, chunk 1234 ms", DARK), ("success at step 123", GREEN)])
    rows, columns = np.nonzero((drawn != shade).any(2))
    assert columns.max() < size - 4  # it fits
    assert rows.min() > size / 2
    labels = drawn[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.min() + 60].min(2)
    assert np.percentile(labels, 30) < 130  # a dark background
    assert 0.01 < (labels > 235).mean() < 0.3  # with white letters
    assert (image == shade).all()


def test_border_keeps_the_inside() -> None:
    framed = draw_border(np.zeros((32, 32, 3), np.uint8), GREEN, 3)
    assert (framed[0] == GREEN).all()
    assert (framed[:, -3:] == GREEN).all()
    assert (framed[3:-3, 3:-3] == 0).all()
