from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from conftest import ddp, ok, refused

from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.preview import LARGER, write_preview
from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError
from ddp_cli.video.video import read_video


def test_a_picture_shows_moments_of_both_cameras(lift_store: Store, tmp_path: Path) -> None:
    write_preview(lift_store, tmp_path / "p.png")
    seen = np.asarray(imageio.imread(tmp_path / "p.png"))
    assert seen.shape == (2 * 2 * 176, 6 * 176, 3)  # two episodes with two cameras, six moments
    last = lift_store.read("robot0_eye_in_hand_image")[-1].repeat(LARGER, 0).repeat(LARGER, 1)
    np.testing.assert_array_equal(seen[-176 : -176 + 168, -176 : -176 + 168], last)


def test_a_video_shows_whole_episodes(lift_store: Store, tmp_path: Path) -> None:
    write_preview(lift_store, tmp_path / "p.mp4")
    lengths = np.diff(lift_store.episode_ends, prepend=0)
    assert read_video(tmp_path / "p.mp4").shape == (lengths.max(), 2 * 176, 2 * 176, 3)


def test_the_command(lift_zarr: Path, lift_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "p.jpg" in refused(ddp("convert", lift_demos, "--preview", "p.jpg"))
    ok(ddp("convert", lift_zarr, "--preview", "p.png"))
    assert "--overwrite" in refused(ddp("convert", lift_zarr, "--preview", "p.png"))
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_without_pictures_there_is_nothing_to_show(lift_demos: Path, tmp_path: Path) -> None:
    convert(lift_demos, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", check=0))
    with pytest.raises(DdpError, match="holds no pictures"):
        write_preview(Store(tmp_path / "s.zarr"), tmp_path / "p.png")
