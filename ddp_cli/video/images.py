"""Image files in memory: the images that datasets store in their tables, and thumbnails."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddp_cli.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
OPAQUE = 255


def decode_image(content: bytes, size: tuple[int, int], location: str) -> NDArray[np.uint8]:
    """The RGB pixels (height, width, 3) of an encoded image of `size` (height, width).

    DataError, with `location` naming the image, if it is damaged, of another size, or not exactly representable as RGB.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.verify()  # checksums, which decoding ignores; the image cannot be used after it
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if (image.height, image.width) != size:
                raise DataError(
                    f"{location} is an image of {image.height}x{image.width} pixels, expected {size[0]}x{size[1]}.",
                    "Resize the images.",
                )
            image.load()
            pixels = _to_rgb(image)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        raise DataError(f"{location} is damaged or not an image.", "Copy the dataset again.") from e
    if pixels is None:
        raise DataError(f"{location} is an image of mode {image.mode}, expected RGB.", "Write the images as RGB.")
    return pixels


def _to_rgb(image: Image.Image) -> NDArray[np.uint8] | None:
    """None if `image` has no colors, or is transparent."""
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode in ("P", "RGBA"):
        pixels = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(pixels[..., :3]) if (pixels[..., 3] == OPAQUE).all() else None
    return None


def image_size(content: bytes, location: str) -> tuple[int, int]:
    """(height, width) of an encoded image, without decoding it; DataError, with `location`, if it is damaged."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        raise DataError(f"{location} is damaged or not an image.", "Copy the dataset again.") from e


def encode_jpeg(image: NDArray[np.uint8], quality: int = 75) -> bytes:
    """`image` (height, width, 3) as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()
