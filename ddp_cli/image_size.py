"""Sizes of images: HEIGHTxWIDTH as text, and the size that a laptop can train on."""

from __future__ import annotations

import re

from ddp_cli.errors import ConfigError
from ddp_cli.schema import MAX_SIDE, Camera, Schema

AUTO, RECORDED_SIZE = "auto", "recorded"
AUTO_PIXELS = 112 * 112  # per image; the published policies use 84x84 to 96x96, of cropped views
MIN_SIDE = 16  # [pixels], of images and crops
SIDE_STEP = 4  # [pixels]; sides are multiples of it


def parse_image_size(text: str, name: str) -> tuple[int, int]:
    """Height and width from "96x128"; ConfigError names the option or setting `name`."""
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if not match or not all(0 < int(side) <= MAX_SIDE for side in match.groups()):
        raise ConfigError(f"{name} '{text}' is not a size.", f"Write HEIGHTxWIDTH, up to {MAX_SIDE}: 96x128.")
    return int(match[1]), int(match[2])


def auto_size(camera: Camera) -> tuple[int, int]:
    """Height and width with the proportions of `camera` and about AUTO_PIXELS; its own size if that is smaller."""
    scale = (AUTO_PIXELS / (camera.height * camera.width)) ** 0.5
    if scale >= 1:
        return camera.height, camera.width
    height, width = (max(SIDE_STEP, SIDE_STEP * round(s * scale / SIDE_STEP)) for s in (camera.height, camera.width))
    return height, width


def with_image_size(schema: Schema, size: str) -> Schema:
    """`schema` with the images of a policy: "96x128", "recorded" (as in the store), or "auto" (`auto_size`).

    ConfigError for anything else, and for another size of images that were already resized when they were converted.
    """
    cameras = {key: _with_image_size(key, camera, size) for key, camera in schema.cameras.items()}
    return schema.model_copy(update={"cameras": cameras})


def _with_image_size(key: str, camera: Camera, size: str) -> Camera:
    stored = (camera.height, camera.width)
    if size == RECORDED_SIZE or (size == AUTO and camera.recorded):
        return camera
    height, width = auto_size(camera) if size == AUTO else parse_image_size(size, "image_size")
    if (height, width) == stored:
        return camera
    if min(height, width) < MIN_SIDE <= min(stored):
        raise ConfigError(f"image_size {size}: sides have at least {MIN_SIDE} pixels.", "For example 96x128.")
    if camera.recorded:
        raise ConfigError(
            f"image_size {size}: the images '{key}' were resized to {stored[0]}x{stored[1]} by ddp convert.",
            f"Convert the recording again with --image-size {size}.",
        )
    return camera.resized(height, width)
