"""Previews of a store: a few episodes as an image or a video, to spot upside-down images or swapped cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError
from ddp_cli.video.overlay import DARK, RGBImage, draw_text
from ddp_cli.video.video import FORMATS, VideoWriter, write_image

MAX_EPISODES = 4
FRAMES_PER_ROW = 6
MIN_TILE_SIDE = 160  # [pixels], smaller images are enlarged
ROUNDING = 16  # [pixels], for video encoders


def check_preview(path: Path) -> None:
    """DdpError unless `path` has the suffix of an image or a video."""
    suffixes = (".png", *FORMATS)
    if path.suffix.lower() not in suffixes:
        raise DdpError(f"cannot write a preview to '{path}'.", f"Name a file that ends in {', '.join(suffixes)}.")


def write_preview(store: Store, path: Path) -> None:
    """Writes up to four episodes, evenly spaced over the store.

    PNG: a row per episode and camera, with six frames. Video: a column per episode, a row per camera; finished
    episodes keep their last frame.
    """
    check_preview(path)
    cameras = store.image_keys
    if not cameras:
        raise DdpError(f"'{store.path}' holds no images.", "Convert the demonstrations without --obs state.")
    episodes = len(store.episode_ends)
    indices = np.linspace(0, episodes - 1, min(MAX_EPISODES, episodes)).round().astype(int).tolist()
    if path.suffix.lower() == ".png":
        rows = [_frame_row(store, key, i) for i in indices for key in cameras]
        width = max(row.shape[1] for row in rows)
        write_image(path, np.concatenate([_pad(row, row.shape[0], width) for row in rows]))
    else:
        _write_video(store, path, indices)


def read_frames(store: Store, key: str, episode: int) -> list[NDArray[np.uint8]]:
    """Six images (H, W, C) of the camera `key`, evenly spaced over an episode, the first and the last among them."""
    begin, end = store.episode_bounds[episode]
    steps = np.linspace(begin, end - 1, FRAMES_PER_ROW).round().astype(int)
    return [store.read(key, rows=slice(step, step + 1))[0] for step in steps]


def _frame_row(store: Store, key: str, episode: int) -> RGBImage:
    tiles = [_tile(image) for image in read_frames(store, key, episode)]
    tiles[0] = draw_text(tiles[0], [(f"{episode}: {key.removesuffix('_image')}", DARK)])
    return np.concatenate(tiles, axis=1)


def _write_video(store: Store, path: Path, indices: list[int]) -> None:
    bounds = [store.episode_bounds[i] for i in indices]
    episodes = [[store.read(key, rows=slice(*rows)) for key in store.image_keys] for rows in bounds]
    with VideoWriter(path, store.task.schema.rate) as video:
        for step in range(max(end - begin for begin, end in bounds)):
            columns = [
                _stack([_tile(images[min(step, len(images) - 1)]) for images in cameras]) for cameras in episodes
            ]
            labels = [[(f"episode {i}", DARK)] for i in indices]
            video.add(np.concatenate(list(map(draw_text, columns, labels)), axis=1))


def _stack(tiles: list[RGBImage]) -> RGBImage:
    """`tiles` below each other, padded to the same width."""
    width = max(tile.shape[1] for tile in tiles)
    return np.concatenate([_pad(tile, tile.shape[0], width) for tile in tiles])


def _tile(image: NDArray[np.uint8]) -> RGBImage:
    """`image` in color, enlarged by a whole factor if it is small, its sides padded to a multiple of 16."""
    scale = -(-MIN_TILE_SIDE // min(image.shape[:2]))
    enlarged = image.repeat(scale, 0).repeat(scale, 1)
    height, width = (-(-side // ROUNDING) * ROUNDING for side in enlarged.shape[:2])
    return _pad(np.broadcast_to(enlarged, (*enlarged.shape[:2], 3)), height, width)


def _pad(image: NDArray[np.uint8], height: int, width: int) -> RGBImage:
    """`image` (H, W, 3) padded with black below and on the right."""
    padded = np.zeros((height, width, 3), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
