"""The part of a page that shows a dataset: its schema, findings and all episodes, some of them in full.

Shapes: n steps of an episode, E episodes, D dimensions of all vectors and the action.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ddp_cli.console import Update
from ddp_cli.data.lint_source import DEFAULT_RATE, LintSource, Series, read_series
from ddp_cli.data.recording import to_images
from ddp_cli.errors import DataError
from ddp_cli.report.dataset_source import DatasetSource, open_dataset
from ddp_cli.report.page import Section
from ddp_cli.report.schema_table import normalizations, schema_rows
from ddp_cli.report.videos import Videos, choose_evenly, fit_frame
from ddp_cli.schema import ACTION, OBJECT
from ddp_cli.video.images import encode_jpeg

THUMBNAIL = 96  # [pixels], the longer side
BINS = 32
UNREADABLE = "unreadable"  # as the lint calls such findings


def dataset_section(path: Path, videos: Videos, max_episodes: int, progress: Update) -> Section:
    """What a page shows of the dataset at `path`, with at most `max_episodes` episodes in full: those with findings
    first, the others evenly chosen. `progress` is called with done, total and what is counted.
    """
    with open_dataset(path) as dataset:
        source = dataset.episodes
        series, kept, _ = read_series(source)
        thumbnails = []
        for i in range(len(source.lengths)):
            thumbnails.append(_thumbnail(source, i))
            progress(i + 1, len(source.lengths), "thumbnails")
        findings = _findings(dataset, thumbnails)
        flags = _flags(findings, len(source.lengths))
        chosen = choose_episodes(flags, max_episodes)
        full = {}
        for done, i in enumerate(chosen):
            full[str(i)] = {"curves": _read_curves(source, i), "videos": _encode_videos(source, i, videos)}
            progress(done + 1, len(chosen), "episodes in full")
        return {
            "kind": "dataset",
            "title": path.name,
            "facts": dataset.facts,
            "schema": schema_rows(dataset.schema, dataset.action) if dataset.schema else [],
            "findings": findings,
            "rate": source.rate,
            "vectors": source.vectors,
            "cameras": list(source.cameras),
            "episodes": [
                {
                    "name": name, "length": source.lengths[i], "success": dataset.successes.get(name),
                    "flags": flags[i], "thumbnail": thumbnails[i],
                }
                for i, name in enumerate(source.episode_names)
            ],
            "full": full,
            "dimensions": _dimensions(series, dataset),
            "starts": _starts(series, kept, len(source.lengths)),
        }  # fmt: skip


def choose_episodes(flags: Sequence[Sequence[str]], at_most: int) -> list[int]:
    """Up to `at_most` episodes, in order: those with the rarest kinds of findings first, then evenly chosen ones."""
    kinds = sorted({kind for one in flags for kind in one}, key=lambda kind: sum(kind in one for one in flags))
    groups = [[i for i, one in enumerate(flags) if kind in one] for kind in kinds] + [list(range(len(flags)))]
    chosen: list[int] = []
    for group in groups:
        chosen += choose_evenly([i for i in group if i not in chosen], at_most - len(chosen))
    return sorted(chosen)


def encode_floats(values: NDArray[Any]) -> str:
    """`values` as little-endian float32, row by row, in base64: exact, and half as long as decimals."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _read_curves(source: LintSource, episode: int) -> dict[str, str]:
    """Vector -> its encoded values, also those that are not finite. Vectors that cannot be read are left out."""
    curves = {}
    for key in source.vectors:
        try:
            values = source.read(key, episode)
        except DataError:
            continue
        with np.errstate(over="ignore"):
            curves[key] = encode_floats(values)
    return curves


def _findings(dataset: DatasetSource, thumbnails: Sequence[str | None]) -> list[dict[str, Any]]:
    """The findings of the dataset with indices of episodes, and one on images that the lint did not look at."""
    positions = {name: i for i, name in enumerate(dataset.episodes.episode_names)}
    findings = [
        {**finding, "episodes": [positions[name] for name in finding["episodes"] if name in positions]}
        for finding in dataset.findings
    ]
    known = {i for finding in findings if finding["kind"] == UNREADABLE for i in finding["episodes"]}
    others = [i for i, image in enumerate(thumbnails) if image is None and i not in known]
    if dataset.episodes.cameras and others:
        findings.append({"kind": UNREADABLE, "message": "the first image of no camera can be read", "episodes": others})
    return findings


def _flags(findings: Sequence[Mapping[str, Any]], count: int) -> list[list[str]]:
    """The kinds of findings on each episode, without those on all of them."""
    kinds = list(dict.fromkeys(finding["kind"] for finding in findings))
    places = {kind: {i for one in findings if one["kind"] == kind for i in one["episodes"]} for kind in kinds}
    return [[kind for kind in kinds if i in places[kind]] for i in range(count)]


def _thumbnail(source: LintSource, episode: int) -> str | None:
    """The first image of the first camera that can be read, as a JPEG in base64; None without one."""
    for key in source.cameras:
        try:
            with closing(cast("Any", _frames(source, key, episode))) as frames:
                image = next(frames)
        except (DataError, StopIteration):
            continue
        return base64.b64encode(encode_jpeg(fit_frame(image, THUMBNAIL, min_side=1), quality=70)).decode()
    return None


def _frames(source: LintSource, key: str, episode: int) -> Iterator[NDArray[np.uint8]]:
    where = f"{key} of episode {source.episode_names[episode]}"
    for image in source.images(key, episode):
        yield to_images(np.asarray(image)[None], is_fraction=False, where=where)[0]


def _encode_videos(source: LintSource, episode: int, videos: Videos) -> dict[str, str]:
    """Camera -> id of its video. Cameras that cannot be read are left out; the lint names them."""
    encoded = {}
    for key in source.cameras:
        try:
            encoded[key] = videos.add(_frames(source, key, episode), source.rate or DEFAULT_RATE)
        except DataError:
            continue
    return encoded


def _dimensions(series: Sequence[Series], dataset: DatasetSource) -> list[dict[str, Any]]:
    """A histogram of each dimension, and what the normalizer of a policy would use of it, over all episodes."""
    if not series or not series[0].episodes:
        return []
    kinds = normalizations(dataset.schema, dataset.action) if dataset.schema else {}
    dimensions = []
    for one in series:
        rows = one.rows.astype(np.float64)
        for column, label in enumerate(one.dimensions):
            values = rows[:, column]
            low, high = float(values.min()), float(values.max())
            counts, _ = np.histogram(values, BINS, (low, high)) if high > low else ([len(values)], None)
            dimensions.append(
                {
                    "key": one.key, "label": label, "low": low, "high": high, "mean": float(values.mean()),
                    "std": float(values.std()), "counts": [int(n) for n in counts],
                    "normalization": kinds.get(one.key, ["range"] * rows.shape[1])[column],
                }
            )  # fmt: skip
    return dimensions


def _starts(series: Sequence[Series], kept: Sequence[int], count: int) -> dict[str, Any]:
    """The first values of each episode (E, D), nan where they cannot be read, and which two dimensions to show."""
    labels = [label for one in series for label in one.dimensions]
    if not kept:
        return {"labels": [], "values": "", "x": 0, "y": 0}
    values = np.full((count, len(labels)), np.nan)
    values[list(kept)] = np.concatenate([[episode[0] for episode in one.episodes] for one in series], axis=1)
    place = next((one.dimensions[0] for one in series if _shows_places(one)), labels[0])
    x = labels.index(place)
    return {"labels": labels, "values": encode_floats(values), "x": x, "y": min(x + 1, len(labels) - 1)}


def _shows_places(series: Series) -> bool:
    """Whether a vector says where something is: the object, or a position."""
    return series.key == OBJECT or (series.key != ACTION and "pos" in series.key.lower() and len(series.dimensions) > 1)
