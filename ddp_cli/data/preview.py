"""A few episodes of a store at a glance: so that a person sees upside-down pictures, swapped cameras or colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError
from ddp_cli.tasks import IMAGE_SIZE
from ddp_cli.video.overlay import DARK, Picture, draw_text
from ddp_cli.video.video import FORMATS, VideoWriter, write_picture

EPISODES, MOMENTS = 4, 6
LARGER = 2  # times the size of a stored picture


def check_preview(path: Path) -> None:
    """DdpError unless `path` names a picture or a video."""
    if path.suffix.lower() not in (".png", *FORMATS):
        raise DdpError(
            f"cannot write a preview to '{path}'.", f"Name a file that ends in {', '.join(('.png', *FORMATS))}."
        )


def write_preview(store: Store, path: Path) -> None:
    """Episodes spread over the store. PNG: a row per episode and camera, moments side by side. Video: a column per
    episode, a row per camera; who has finished waits.
    """
    check_preview(path)
    cameras = store.pictures
    if not cameras:
        raise DdpError(f"'{store.path}' holds no pictures.", "Convert without --obs state.")
    count = min(EPISODES, len(store.episode_ends))
    chosen = np.linspace(0, len(store.episode_ends) - 1, count).round().astype(int)
    every = store.spans
    spans = [every[i] for i in chosen]
    if path.suffix.lower() == ".png":
        rows = [_strip(store, key, i, span) for i, span in zip(chosen, spans, strict=True) for key in cameras]
        write_picture(path, np.concatenate(rows))
        return
    episodes = [{key: store.read(key, rows=slice(*span)) for key in cameras} for span in spans]
    with VideoWriter(path) as video:
        for step in range(max(end - begin for begin, end in spans)):
            columns = [
                np.concatenate([_larger(seen[key][min(step, len(seen[key]) - 1)]) for key in cameras])
                for seen in episodes
            ]
            labelled = [draw_text(column, [(f"episode {i}", DARK)]) for i, column in zip(chosen, columns, strict=True)]
            video.add(np.concatenate(labelled, axis=1))


def _strip(store: Store, key: str, episode: int, span: tuple[int, int]) -> Picture:
    steps = np.linspace(span[0], span[1] - 1, MOMENTS).round().astype(int)
    tiles = [_larger(store.read(key, rows=slice(step, step + 1))[0]) for step in steps]
    tiles[0] = draw_text(tiles[0], [(f"{episode}: {key.removesuffix('_image')}", DARK)])
    return np.concatenate(tiles, axis=1)


def _larger(picture: NDArray[np.uint8]) -> Picture:
    size = IMAGE_SIZE * LARGER
    # Video encoders want multiples of 16: a dark rim.
    framed = np.zeros((-(-size // 16) * 16,) * 2 + (3,), np.uint8)
    framed[:size, :size] = picture.repeat(LARGER, 0).repeat(LARGER, 1)
    return framed
