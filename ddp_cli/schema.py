"""What a step of a dataset holds, as data: cameras, vectors, the parts of an action, the control rate.

A store, a run, a checkpoint and policy.json carry a schema. Only the built-in tasks (tasks.py) have sizes, widths and a
rate of their own; everything else takes them from the schema.
Keys name arrays, modules and graph inputs: they are identifiers without dots. `source` is the path of a value in the
recording that it was read from, such as `observation.images.top`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, field_validator, model_validator

from ddp_cli.base_config import BaseConfig
from ddp_cli.choices import Fit
from ddp_cli.resize import ffmpeg_filter, resize

Representation = Literal["delta", "absolute", "plain"]
"""delta: a motion, zero where nothing moves. absolute: a goal. plain: unknown, taken as it was recorded."""

Rotation = Literal["none", "axis-angle", "quaternion-xyzw", "quaternion-wxyz", "rotation-6d"]
ROTATION_WIDTHS = {"axis-angle": 3, "quaternion-xyzw": 4, "quaternion-wxyz": 4, "rotation-6d": 6}

Normalization = Literal["range", "gaussian", "identity"]
"""range: the range in the training data becomes -1 to 1. gaussian: mean 0, standard deviation 1."""

ACTION, OBJECT = "action", "object"
"""Arrays of a store: the actions, and the poses of objects that a simulator knows."""
RESERVED_KEYS = (ACTION, "noise")
"""Inputs and outputs of an exported policy that are no observations."""
MAX_WIDTH, MAX_SIDE, MAX_RATE = 1_000, 4_096, 10_000.0


def check_identifier(text: str) -> str:
    """`text` if it may be a key or a name; ValueError says what would be valid."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise ValueError("use at most 64 letters, digits, '_' and '-', the first a letter or digit")
    return text


def _check_not_reserved(text: str) -> str:
    if text in RESERVED_KEYS:
        raise ValueError("a policy uses this name itself")
    return check_identifier(text)


Identifier = Annotated[str, AfterValidator(check_identifier)]
ObservationKey = Annotated[str, AfterValidator(_check_not_reserved)]
Width = Annotated[int, Field(strict=True, ge=1, le=MAX_WIDTH)]
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]
Bounds = tuple[float | None, ...]


class _SchemaEntry(BaseConfig):
    key_kind: ClassVar[str] = "key"
    default_hint: ClassVar[str] = "Correct the schema."
    general_hint: ClassVar[str] = default_hint
    names_place: ClassVar[bool] = True

    def to_json(self) -> dict[str, Any]:
        """JSON values that the class reads; those that are defaults are left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Camera(_SchemaEntry):
    """Images of one camera, (height, width, channels) uint8 from 0 to 255."""

    height: Side
    width: Side
    channels: Literal[1, 3] = 3
    source: str = ""
    recorded: tuple[Side, Side] | None = None
    """Height and width in the recording, if the images were resized from another size: a policy takes images of this
    size as well, and resizes them in the same way."""
    fit: Fit = "stretch"
    """How they were resized: see resize.py."""

    def resized(self, height: int, width: int, fit: Fit = "stretch") -> Self:
        """The camera with images resized to another size."""
        recorded = self.recorded or (self.height, self.width)
        if (height, width) == recorded:
            return self.model_copy(update={"height": height, "width": width, "recorded": None, "fit": "stretch"})
        return self.model_copy(update={"height": height, "width": width, "recorded": recorded, "fit": fit})

    @property
    def recorded_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) in the recording."""
        height, width = self.recorded or (self.height, self.width)
        return height, width, self.channels

    def take(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images (..., H, W, C), resized if they have the size of the recording."""
        return (
            resize(images, (self.height, self.width), self.fit) if images.shape[-3:] == self.recorded_shape else images
        )

    @property
    def ffmpeg_filter(self) -> str:
        """An ffmpeg filter that does the same to the frames of a video."""
        return ffmpeg_filter(self.recorded, (self.height, self.width), self.fit) if self.recorded else "null"

    def takes(self, stored: Camera) -> bool:
        """Whether images of `stored` become those of this camera: they have its size, or that of its recording."""
        return self == stored or (stored.recorded is None and stored.shape == self.recorded_shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels


class Vector(_SchemaEntry):
    """A vector (width,) float32. `names`: of its elements, empty where they are not known."""

    width: Width
    unit: str = ""
    names: tuple[str, ...] = ()
    normalization: Normalization = "range"
    source: str = ""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        _check_length("names", self.names, self.width)
        return self


class ActionPart(_SchemaEntry):
    """Some consecutive values of an action. `low` and `high`: the limits of each value, None for no limit; without
    them the range in the training data is the limit of absolute and plain values.
    """

    name: Identifier
    width: Width
    representation: Representation = "plain"
    rotation: Rotation = "none"
    gripper: bool = False
    """Whether these values open and close a gripper: they stay as they are when the robot is stopped."""
    unit: str = ""
    names: tuple[str, ...] = ()
    low: Bounds = ()
    high: Bounds = ()
    normalization: Normalization = "range"

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field in ("names", "low", "high"):
            _check_length(field, getattr(self, field), self.width)
        bounds = zip(self.low, self.high, strict=False)  # either may be empty
        if any(low is not None and high is not None and low > high for low, high in bounds):
            raise ValueError(f"low {list(self.low)} of '{self.name}' is above high {list(self.high)}")
        expected = ROTATION_WIDTHS.get(self.rotation, self.width)
        if self.width != expected:
            raise ValueError(f"width {self.width} of '{self.name}' does not fit {self.rotation}, which has {expected}")
        return self


def _check_length(field: str, values: Sequence[Any], width: int) -> None:
    if values and len(values) != width:
        raise ValueError(f"{field} has {len(values)} entries, expected {width}")


class Schema(_SchemaEntry):
    """What a step holds. The order of cameras and vectors is the order in which a policy receives them."""

    rate: float = Field(gt=0, le=MAX_RATE, description=f"the control rate in Hz, above 0 and up to {MAX_RATE:g}")
    cameras: dict[ObservationKey, Camera] = Field(default_factory=dict)
    vectors: dict[ObservationKey, Vector] = Field(default_factory=dict)
    """The vector `object` holds poses that only a simulator knows: image policies do not observe it."""
    action: tuple[ActionPart, ...] = Field(min_length=1)
    action_source: str = ""

    @field_validator("action")
    @classmethod
    def _check_part_names(cls, parts: tuple[ActionPart, ...]) -> tuple[ActionPart, ...]:
        names = [part.name for part in parts]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of parts {', '.join(names)} are not unique")
        return parts

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        shared = [key for key in self.cameras if key in self.vectors]
        if shared:
            raise ValueError(f"'{shared[0]}' is a camera and a vector")
        if not self.cameras and not self.vectors:
            raise ValueError("a step has no observation")
        return self

    @property
    def action_dim(self) -> int:
        """Da, the width of an action."""
        return sum(part.width for part in self.action)

    def action_slices(self) -> dict[str, slice]:
        """The values of each part in an action, by its name."""
        return dict(zip((part.name for part in self.action), action_slices(self.action), strict=True))


def action_slices(parts: Sequence[ActionPart]) -> list[slice]:
    """The values of each part in an action."""
    ends = list(itertools.accumulate(part.width for part in parts))
    return [slice(end - part.width, end) for part, end in zip(parts, ends, strict=True)]
