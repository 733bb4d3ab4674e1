"""Frames of videos: each one once, exactly, and damage is found on the way."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from ddp_cli.data.lerobot_images import VideoReader
from ddp_cli.errors import DataError
from ddp_cli.schema import Camera
from ddp_cli.video.decoder import iter_frames
from ddp_cli.video.video import VideoWriter

SHAPE, RATE, N_FRAMES = (32, 48), 20, 60
CAMERA = Camera(height=SHAPE[0], width=SHAPE[1])


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N_FRAMES, *SHAPE, 3), np.uint8)


@pytest.fixture
def path(tmp_path: Path, images: np.ndarray) -> Path:
    with VideoWriter(tmp_path / "v.mp4", RATE, lossless=True, key_frame_interval=7) as writer:
        for image in images:
            writer.add(image)
    return writer.path


def test_every_frame_is_read_once(path: Path, images: np.ndarray) -> None:
    np.testing.assert_array_equal(np.stack(list(iter_frames(path, SHAPE))), images)
    np.testing.assert_array_equal(np.stack(list(iter_frames(path, SHAPE, 10.5 / RATE))), images[11:])


@pytest.mark.parametrize("seek", [False, True])
def test_episodes_are_read_in_any_order(
    path: Path, images: np.ndarray, seek: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By decoding what is in between, and by searching for a key frame; also where the one before was not finished."""
    monkeypatch.setattr("ddp_cli.data.lerobot_images.MAX_SKIPPED", 3)
    reader = VideoReader(CAMERA, RATE, seek)
    for begin, end in ((0, 9), (9, 20), (33, 41), (5, 8), (50, 60)):
        read = np.stack(list(reader.read(path, begin, end - begin, 0)))
        np.testing.assert_array_equal(read, images[begin:end])
        np.testing.assert_array_equal(next(reader.read(path, 30, 10, 0)), images[30])
    with pytest.raises(DataError, match="ends after 5 of 9 images of episode 3"):
        list(reader.read(path, 55, 9, 3))


def test_damage_is_an_error_at_its_frame(path: Path, images: np.ndarray) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(byte ^ 16 for byte in content[middle : middle + 2000])
    path.write_bytes(content)
    frames = iter_frames(path, SHAPE)
    intact = list(itertools.islice(frames, 10))
    np.testing.assert_array_equal(intact, images[:10])
    with pytest.raises(DataError, match=r"v\.mp4' is damaged after frame [123]\d\."):
        list(frames)


def test_frames_are_counted_whatever_the_rate_of_the_video(path: Path, images: np.ndarray) -> None:
    """A header may be off by 1%: after 50 frames, half a frame."""
    for first in (0, 20, 55):
        reader = VideoReader(CAMERA, RATE * 1.009)
        np.testing.assert_array_equal(np.stack(list(reader.read(path, first, 5, 0))), images[first : first + 5])
