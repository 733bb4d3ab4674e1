from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from conftest import read_video

from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.preview import write_preview
from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError


def test_image_shows_frames_of_both_cameras(lift_store: Store, tmp_path: Path) -> None:
    write_preview(lift_store, tmp_path / "p.png")
    preview = np.asarray(imageio.imread(tmp_path / "p.png"))
    assert preview.shape == (2 * 2 * 176, 6 * 176, 3)  # two episodes with two cameras, six frames
    last = lift_store.read("robot0_eye_in_hand_image")[-1].repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(preview[-176 : -176 + 168, -176 : -176 + 168], last)


def test_video_shows_whole_episodes(lift_store: Store, tmp_path: Path) -> None:
    write_preview(lift_store, tmp_path / "p.mp4")
    lengths = np.diff(lift_store.episode_ends, prepend=0)
    assert read_video(tmp_path / "p.mp4").shape == (lengths.max(), 2 * 176, 2 * 176, 3)


def test_other_suffixes_are_rejected(lift_store: Store, tmp_path: Path) -> None:
    with pytest.raises(DdpError, match=r"p.jpg'.*\.png, \.mp4"):
        write_preview(lift_store, tmp_path / "p.jpg")
    assert list(tmp_path.iterdir()) == []


def test_store_without_images_is_rejected(lift_demos: Path, tmp_path: Path) -> None:
    convert(lift_demos, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", check=0))
    with pytest.raises(DdpError, match="holds no images"):
        write_preview(Store(tmp_path / "s.zarr"), tmp_path / "p.png")
