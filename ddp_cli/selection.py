"""The source of a value in a recording or an observation: an array, or some elements of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from ddp_cli.errors import ConfigError


class Selection(NamedTuple):
    """An array, or some elements of its flattened steps."""

    array: str
    elements: slice

    def width(self, shape: Sequence[int]) -> int:
        """Number of selected elements of a step of `shape`; ConfigError if some are beyond its end."""
        n_elements, end = math.prod(shape), self.elements.stop
        if end is not None and end > n_elements:
            raise ConfigError(
                f"'{self.array}[{self.elements.start}:{end}]' goes beyond the {n_elements} numbers of a step.",
                f"Select some of {self.array}[0:{n_elements}].",
            )
        return len(range(n_elements)[self.elements])


def parse_selection(text: str) -> Selection:
    """`data/state`, or some of its elements: `data/state[0:2]`, `data/state[4]`."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+)(?::(\d+))?\])?", text)
    if not match:
        raise ConfigError(f"'{text}' is not an array.", "Name one, or some of its elements: data/state[0:2].")
    name, begin, end = match.groups()
    if begin is None:
        return Selection(name, slice(None))
    return Selection(name, slice(int(begin), int(end) if end else int(begin) + 1))
