"""The lint of a dataset: what in it would hurt a policy that learns from it (`ddp inspect`)."""

from __future__ import annotations

from typing import Any

from ddp_cli.data.lint_images import image_episodes, lint_images
from ddp_cli.data.lint_source import Finding, LintSource, read_series
from ddp_cli.data.lint_vectors import lint_vectors


def lint(source: LintSource) -> list[Finding]:
    """All findings. Vectors and actions are held in memory, images one at a time."""
    series, kept, findings = read_series(source)
    if kept:
        findings += lint_vectors(source, series, [source.episode_names[i] for i in kept])
        findings += lint_images(source, series, kept)
    return findings


def lint_contents(source: LintSource) -> dict[str, Any]:
    """The findings as JSON, for the contents that `ddp inspect` prints."""
    findings = [{"kind": f.kind, "message": f.message, "episodes": f.episodes} for f in lint(source)]
    return {"lint": findings, "lint_images": len(image_episodes(source))}


def describe_lint(contents: dict[str, Any]) -> list[tuple[str, ...]]:
    """The result of `lint_contents` as rows for people; none if nothing was linted."""
    if "lint" not in contents:
        return []
    count, looked_at = len(contents["lint"]), contents["lint_images"]
    seen = f"images of {looked_at} episodes were looked at" if looked_at else "no images"
    summary = f"{count or 'nothing'} found ({seen})"
    return [("lint", summary), *(("", str(Finding(**finding))) for finding in contents["lint"])]
