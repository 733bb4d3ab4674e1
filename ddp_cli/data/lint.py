"""The lint of a dataset: what in it would hurt a policy that learns from it (`ddp inspect`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.lint_episodes import lint_episodes
from ddp_cli.data.lint_images import image_episodes, lint_images
from ddp_cli.data.lint_source import Finding, LintSource, demo_source, read_series, recording_source, store_source
from ddp_cli.data.lint_vectors import lint_vectors
from ddp_cli.data.recording import Recording
from ddp_cli.data.store import Store
from ddp_cli.schema import Schema


def lint(source: LintSource) -> list[Finding]:
    """All findings. Vectors and actions are held in memory, images one at a time."""
    return _lint(source)[0]


def _lint(source: LintSource) -> tuple[list[Finding], int]:
    """All findings, and of how many episodes the images were looked at."""
    series, kept, findings = read_series(source)
    if not kept:
        return findings, 0
    chosen = image_episodes(source, kept)
    names = [source.episode_names[i] for i in kept]
    with np.errstate(over="ignore", invalid="ignore"):  # values near the limit of float32 are outliers, not warnings
        findings += lint_episodes(source, series, names)
        findings += lint_vectors(series, names, source.rate)
    findings += lint_images(source, series, kept, chosen)
    return findings, len(chosen)


def lint_recording(recording: Recording, schema: dict[str, Any]) -> dict[str, Any]:
    """What `ddp inspect` adds to the contents of a recording: the findings on the arrays that `schema` names.

    Its rate may be None; without a schema nothing is linted.
    """
    if not schema:
        return {}
    full_schema = Schema(**schema | {"rate": schema["rate"] or 1.0})
    return _contents(recording_source(recording, full_schema, schema["rate"]))


def lint_demos(demos: DemoFile, names: list[str]) -> dict[str, Any]:
    """What `ddp inspect` adds to the contents of a file of robosuite: findings on the lengths, pauses and duplicates of
    the demonstrations `names`. Values of simulator states are not observed, so nothing is said of them.
    """
    if not names:
        return {}
    source = demo_source(demos, names)
    series, kept, findings = read_series(source)
    if kept:
        findings += lint_episodes(source, series, [names[i] for i in kept])
    return _describe(findings, [0, 0])


def lint_store(store: Store) -> dict[str, Any]:
    """What `ddp inspect` adds to the contents of a store."""
    return _contents(store_source(store))


def _contents(source: LintSource) -> dict[str, Any]:
    findings, looked_at = _lint(source)
    return _describe(findings, [looked_at, len(source.lengths) if source.cameras else 0])


def _describe(findings: list[Finding], images: list[int]) -> dict[str, Any]:
    """`images`: of how many episodes the images were looked at, and how many have some."""
    return {
        "lint": [{"kind": f.kind, "message": f.message, "episodes": f.episodes} for f in findings],
        "lint_images": images,
    }


def describe_lint(contents: dict[str, Any]) -> list[tuple[str, ...]]:
    """The findings in `contents` as rows (name, value) for people; none if nothing was linted."""
    if "lint" not in contents:
        return []
    looked_at, episodes = contents["lint_images"]
    rows = [str(Finding(**finding)) for finding in contents["lint"]] or ["nothing found"]
    if looked_at < episodes:
        rows.append(f"images of {looked_at} of {episodes} episodes were looked at")
    return [("lint", row) for row in rows]
