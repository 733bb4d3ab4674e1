"""What in the images of a dataset would hurt a policy. Decoding is slow: only some episodes are looked at, one image at
a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lint_source import Finding, Floats, LintSource, Series
from ddp_cli.errors import DataError

MAX_EPISODES = 20
MAX_PIXELS = 800e6  # of all images together: about 10 s of video or of JPEGs
VISIBLE_MOTION = 0.02  # of the range of a dimension, in one step: at 84 pixels about 2 pixels
MIN_REPEATS = 3  # in an episode; a single dropped frame does no harm
CHANGED = 16  # of 255: more than the noise of a camera and of compression
CHANGED_SHARE = 0.001  # of the pixels: a gripper far away is larger


def image_episodes(source: LintSource, kept: list[int]) -> list[int]:
    """The episodes, of those `kept`, whose images are looked at: evenly chosen."""
    if not source.cameras:
        return []
    pixels = float(np.mean([source.lengths[i] for i in kept])) * sum(source.cameras.values())
    count = int(min(MAX_EPISODES, max(1, MAX_PIXELS // max(pixels, 1)), len(kept)))
    return [kept[k] for k in np.linspace(0, len(kept) - 1, count).round().astype(int)]


@dataclass(frozen=True)
class ImageFaults:
    """What is odd about the images of one camera in an episode."""

    is_single_color: bool
    hardly_changes: bool
    repeats: list[int]
    """Steps whose image is the one before, while the robot moves."""


def lint_images(source: LintSource, series: list[Series], kept: list[int], chosen: list[int]) -> Iterator[Finding]:
    """Findings on the images of the episodes `chosen`, of those `kept`, which `series` hold."""
    for key in source.cameras:
        faults: dict[int, ImageFaults] = {}
        unreadable: dict[int, str] = {}
        for i in chosen:
            motion = np.max([one.motions[kept.index(i)] for one in series], axis=0)
            try:
                faults[i] = find_image_faults(source.images(key, i), source.lengths[i], motion)
            except DataError as e:
                unreadable[i] = e.message
        yield from _report(key, source, faults, unreadable, len(chosen))


def find_image_faults(images: Iterator[NDArray[Any]], count: int, motion: Floats) -> ImageFaults:
    """What is odd about `count` images; `motion` (count - 1,) is how far the robot moves from each to the next."""
    previous: NDArray[Any] | None = None
    samples: list[NDArray[Any]] = []
    repeats: list[int] = []
    for step, image in enumerate(images):
        moves = 0 < step <= len(motion) and motion[step - 1] > VISIBLE_MOTION
        if moves and previous is not None and np.array_equal(image, previous):
            repeats.append(step)
        if step in (0, count // 2, count - 1):
            samples.append(image)
        previous = image
    first, *others = samples
    changed = [(np.abs(first.astype(np.float32) - other) > CHANGED).mean() for other in others]
    is_single_color = all(np.ptp(image) == 0 for image in samples)
    return ImageFaults(is_single_color, bool(others) and max(changed) < CHANGED_SHARE, repeats)


def _report(
    key: str, source: LintSource, faults: dict[int, ImageFaults], unreadable: dict[int, str], looked_at: int
) -> Iterator[Finding]:
    of_all = f"of {looked_at} episodes looked at"
    if unreadable:
        first = next(iter(unreadable.values())).rstrip(".")
        message = f"images of {key} in {len(unreadable)} {of_all}: {first}"
        yield Finding("unreadable", message, [source.episode_names[i] for i in unreadable])
    plain = [i for i, fault in faults.items() if fault.is_single_color]
    if plain:
        message = (
            f"{key} has a single color in {len(plain)} {of_all}, first in episode {source.episode_names[plain[0]]}"
        )
        yield Finding("camera", message, [source.episode_names[i] for i in plain])
    fixed = [i for i, fault in faults.items() if fault.hardly_changes and not fault.is_single_color]
    if fixed:
        message = f"{key} hardly changes in {len(fixed)} {of_all}, first in episode {source.episode_names[fixed[0]]}"
        yield Finding("camera", message, [source.episode_names[i] for i in fixed])
    repeated = {i: f.repeats for i, f in faults.items() if len(f.repeats) >= MIN_REPEATS and not f.hardly_changes}
    if repeated:
        i, steps = next(iter(repeated.items()))
        total = sum(map(len, repeated.values()))
        message = (
            f"{total} images of {key} repeat the one before while the robot moves, in {len(repeated)} {of_all}, first "
            f"in step {steps[0]} of episode {source.episode_names[i]}"
        )
        yield Finding("repeated", message, [source.episode_names[i] for i in repeated])
