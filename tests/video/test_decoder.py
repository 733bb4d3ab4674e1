"""Frames of videos: each one once, exactly, and damage is found on the way."""

from __future__ import annotations

import itertools
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from ddp_cli.choices import Fit
from ddp_cli.data.lerobot_images import VideoReader
from ddp_cli.errors import DataError
from ddp_cli.resize import resize
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


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(byte ^ 16 for byte in content[middle : middle + 2000])
    path.write_bytes(content)


def test_damage_is_an_error_at_its_frame(path: Path, images: np.ndarray) -> None:
    damage(path)
    frames = iter_frames(path, SHAPE)
    intact = list(itertools.islice(frames, 10))
    np.testing.assert_array_equal(intact, images[:10])
    with pytest.raises(DataError, match=r"v\.mp4' is damaged after frame [123]\d\."):
        list(frames)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(24, 32), (15, 41), (100, 77)])
@pytest.mark.parametrize(("shape", "codec"), [((48, 64), "libx264"), ((61, 45), "mpeg4")])
def test_ffmpeg_resizes_frames_as_images_are_resized(
    tmp_path: Path, shape: tuple[int, int], codec: str, size: tuple[int, int], fit: Fit
) -> None:
    """Also with colors of half the resolution and odd sides. At the edges, weights differ."""
    path, rng = tmp_path / "v.mp4", np.random.default_rng(1)
    images = resize(rng.integers(0, 256, (6, 9, 12, 3), np.uint8), shape)
    writer = imageio_ffmpeg.write_frames(path, shape[::-1], fps=RATE, codec=codec, macro_block_size=1)
    writer.send(None)
    for image in images:
        writer.send(image.tobytes())
    writer.close()
    full = np.stack(list(VideoReader(Camera(height=shape[0], width=shape[1]), RATE).read(path, 0, 6, 0)))
    camera = Camera(height=shape[0], width=shape[1]).resized(*size, fit)
    resized = np.stack(list(VideoReader(camera, RATE).read(path, 0, 6, 0)))
    expected = camera.take(full)
    assert resized.shape == (6, *size, 3)
    differences = np.abs(resized.astype(int) - expected)
    assert differences.mean() < 0.2
    assert np.abs(resized.mean(axis=(0, 1, 2)) - expected.mean(axis=(0, 1, 2))).max() < 0.05
    rows, columns = (np.flatnonzero(expected.any(axis=axes)) for axes in ((0, 2, 3), (0, 1, 3)))  # without black bars
    assert differences[:, rows[1:-1, None], columns[1:-1]].max() <= 1


def test_damage_is_found_in_resized_frames(path: Path) -> None:
    damage(path)
    with pytest.raises(DataError, match=r"v\.mp4' is damaged after frame [123]\d\."):
        list(VideoReader(CAMERA.resized(8, 12), RATE).read(path, 0, N_FRAMES, 0))


def test_frames_are_counted_whatever_the_rate_of_the_video(path: Path, images: np.ndarray) -> None:
    """A header may be off by 1%: after 50 frames, half a frame."""
    for first in (0, 20, 55):
        reader = VideoReader(CAMERA, RATE * 1.009)
        np.testing.assert_array_equal(np.stack(list(reader.read(path, first, 5, 0))), images[first : first + 5])
