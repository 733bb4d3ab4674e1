"""LeRobot datasets whose images are in the table rather than in videos."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.lerobot_datasets import DATA, convert_dataset, forget_origin, images_in_table, write_column
from PIL import Image

from ddp_cli.data.lerobot_inspection import inspect_lerobot
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError, DdpError
from ddp_cli.tasks import get_task
from ddp_cli.video.images import decode_image

FEATURE = "observation.images.agentview"


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def flip_bit(content: bytes, position: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize("cells", ["bytes", "path"])
def test_images_in_the_table_are_read(lerobot: Path, lift_store: Store, tmp_path: Path, cells: str) -> None:
    forget_origin(lerobot)
    images_in_table(lerobot, lift_store, cells)
    assert "With --actions delta it writes a store" in inspect_lerobot(lerobot, get_task("lift"))["ddp convert"]
    convert_dataset(lerobot, tmp_path / "d.zarr", "delta", "1:")
    begin = int(lift_store.episode_ends[0])
    assert lift_store.image_keys == ["agentview_image", "robot0_eye_in_hand_image"]
    for key in lift_store.image_keys:
        np.testing.assert_array_equal(
            Store(tmp_path / "d.zarr").read(key), lift_store.read(key, rows=slice(begin, None))
        )


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": None, "path": "../secret.png"}, r"refers to the file '\.\./secret\.png', outside of the dataset"),
        ({"bytes": None, "path": "/etc/passwd"}, "'/etc/passwd', outside of the dataset"),
        ({"bytes": None, "path": "images/none.png"}, r"step 2: no file '.*images/none\.png'"),
        ({"bytes": None, "path": None}, "of step 2: the table holds no image"),
        (None, "of step 2: the table holds no image"),
        ({"bytes": b"no image", "path": None}, "of step 2 is damaged or not an image"),
        ({"bytes": encode(Image.new("RGB", (64, 96))), "path": None}, "step 2 is an image of 96x64 pixels, exp"),
        ({"bytes": encode(Image.new("L", (84, 84))), "path": None}, "of step 2 is an image of mode L, expected RGB"),
    ],
)  # fmt: skip
def test_faults_name_the_step(lerobot: Path, lift_store: Store, tmp_path: Path, cell: object, message: str) -> None:
    images_in_table(lerobot, lift_store)
    cells = pq.read_table(lerobot / DATA).column(FEATURE).to_pylist()
    cells[2] = cell
    write_column(lerobot, FEATURE, pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
    with pytest.raises(DdpError, match=rf"episode 0, {FEATURE} .*{message}|{message}"):
        convert_dataset(lerobot, tmp_path / "d.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["lift"]


def test_decode_image() -> None:
    """Exactly, or not at all."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    for content in (encode(image), encode(image, "BMP"), encode(image.convert("RGBA"))):
        np.testing.assert_array_equal(decode_image(content, (4, 6), "image"), pixels)
    transparent = image.convert("RGBA")
    transparent.putalpha(100)
    for content, message in (
        (encode(transparent), "mode RGBA, expected RGB"),
        (encode(image)[:-20], "image is damaged"),
        (flip_bit(encode(image), -22), "image is damaged"),
        (encode(image.convert("P"), "GIF"), "is damaged or not an image"),  # not a format of single images
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n", "is damaged or not an image"),
    ):
        with pytest.raises(DataError, match=message):
            decode_image(content, (4, 6), "image")
