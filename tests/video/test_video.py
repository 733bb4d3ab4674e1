"""Video files: their content, and that failures leave no files."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from conftest import read_video

from ddp_cli.errors import DdpError
from ddp_cli.video.overlay import OVERLAY_COLORS
from ddp_cli.video.video import VideoWriter


def test_video_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    frames = np.zeros((5, 64, 96, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, : 16 * (i + 1)] = (200, 60, 30)
    with VideoWriter(tmp_path / "v.mp4", 20) as video:
        for frame in frames:
            video.add(frame)
    decoded = read_video(tmp_path / "v.mp4")
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(float) - frames).mean() < 6


def test_gif_repeats_and_holds_every_second_frame_and_the_last(tmp_path: Path) -> None:
    import imageio.v2 as imageio

    for n, expected in ((5, [0, 2, 4]), (6, [0, 2, 4, 5]), (1, [0])):
        path = tmp_path / f"{n}.gif"
        with VideoWriter(path, 20) as video:
            for i in range(n):
                video.add(np.full((64, 96, 3), 40 * i, np.uint8))
        frames = read_video(path)
        assert frames.shape == (len(expected), 64, 96, 3)
        assert np.abs(frames[:, 30, 30, 0].astype(int) - 40 * np.array(expected)).max() < 6
        metadata = imageio.get_reader(path).get_meta_data()
        assert (metadata["loop"], metadata["duration"]) == (0, 100 if n > 1 else 1000)  # repeats forever; [ms]
        assert imageio.get_reader(path).get_meta_data(len(expected) - 1)["duration"] == 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.gif", "5.gif", "6.gif"]


def test_gif_keeps_the_overlay_colors(tmp_path: Path) -> None:
    """Dots in one of many frames with 200 other shades."""
    shades = np.random.default_rng(0).integers(0, 200, (40, 224, 448, 1), np.uint8)
    frames = shades + np.array([50, 40, 20], np.uint8)
    for i, color in enumerate(OVERLAY_COLORS):
        frames[4, 20 * i + 4 : 20 * i + 6, 100:103] = color
    with VideoWriter(tmp_path / "v.gif", 20, OVERLAY_COLORS) as video:
        for frame in frames:
            video.add(frame)
    decoded = read_video(tmp_path / "v.gif")[2].astype(int)
    for i, color in enumerate(OVERLAY_COLORS):
        assert np.abs(decoded[20 * i + 4 : 20 * i + 6, 100:103] - color).max() < 30


def test_two_videos_of_the_same_stem_can_be_written_at_once(tmp_path: Path) -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    with VideoWriter(tmp_path / "v.gif", 20) as gif, VideoWriter(tmp_path / "v.mp4", 20) as mp4:
        for video in (gif, mp4, mp4):
            video.add(frame)
    assert [len(read_video(tmp_path / name)) for name in ("v.gif", "v.mp4")] == [1, 2]


def test_unknown_format_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DdpError, match=r"\.mp4"):
        VideoWriter(tmp_path / "v.txt", 20)


def test_interrupted_video_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "v.mp4", 20) as video:
        video.add(np.zeros((64, 64, 3), np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["v.gif", "v.mp4"])
def test_failed_video_leaves_no_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / name, 20) as video:
        for _ in range(4):
            video.add(np.zeros((64, 64, 3), np.uint8))
        raise RuntimeError
    with pytest.raises(ValueError, match="shape|dim|size"), VideoWriter(tmp_path / name, 20) as video:
        video.add(np.zeros((64, 64, 3), np.uint8))
        for _ in range(3):
            video.add(np.zeros((32, 64, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_no_files(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, 128, 128, 3), np.uint8)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(DdpError, match="the disk is full"), VideoWriter(tmp_path / "v.gif", 20) as video:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
            for frame in noise:
                video.add(frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []
