"""A dataset that a page shows: any recording, store or LeRobot dataset, with what `ddp inspect` says about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.inspection import describe_source, inspect_source
from ddp_cli.data.lerobot_layout import is_lerobot
from ddp_cli.data.lerobot_recording import LeRobotRecording
from ddp_cli.data.lint_source import LintSource, demo_source, recording_source, store_source
from ddp_cli.data.recording import Recording
from ddp_cli.data.recording_schema import plan_recording
from ddp_cli.data.recordings import open_recording
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.schema import ActionPart, Schema


@dataclass(frozen=True)
class DatasetSource:
    """Episodes, the schema that says what is in them, and findings."""

    path: Path
    facts: list[tuple[str, str]]
    """What `ddp inspect` prints, without the findings."""
    findings: list[dict[str, Any]]
    """Of the lint, and of the replay check: kind, message, and names of the episodes (empty: all)."""
    episodes: LintSource
    schema: Schema | None
    action: tuple[ActionPart, ...]
    """The parts of the actions that are stored."""
    successes: dict[str, bool] = field(default_factory=dict)
    """Name of each episode of which it is known -> whether it ended with success."""


@contextmanager
def open_dataset(path: Path) -> Iterator[DatasetSource]:
    """The dataset at `path`; DataError if there is none, or it cannot be read without further options."""
    contents = inspect_source(path)
    rows = [(row[0], row[1]) for row in describe_source(contents) if row[0] != "lint"]
    findings: list[dict[str, Any]] = contents.get("lint", [])
    if contents["kind"] == "ddp store":
        store = Store(path)
        action = store.task.action_parts(store.attrs["action"]["convention"])
        facts = [*rows, ("provenance", _provenance(store))]
        findings = [*_check_findings(store.check), *findings]
        yield DatasetSource(
            path, facts, findings, store_source(store), store.task.schema, action, _successes(store)
        )  # fmt: skip
        return
    recording = _open_recording(path)
    if recording is not None:
        content, plan = plan_recording(recording)
        if not content:
            raise DataError(f"'{path}' {plan}.", "Convert it first, and make a report of the store.")
        schema = Schema(**content | {"rate": content["rate"] or 1.0})
        source = recording_source(recording, schema, content["rate"])
        yield DatasetSource(path, rows, findings, source, schema, schema.action)
        return
    if not path.is_file():
        raise DataError(f"'{path}' holds no episodes that a page could show.", "`ddp inspect` says what it holds.")
    with DemoFile(path, None, allow_unknown_env=True) as demos:
        names = [name for name in demos.names if name not in contents["bad"]]
        if not names:
            raise DataError(f"'{path}' holds no valid demonstrations.", f"`ddp inspect {path}` lists their faults.")
        yield DatasetSource(path, rows, findings, demo_source(demos, names), None, (), contents["policy_episodes"])


def _open_recording(path: Path) -> Recording | None:
    """The recording at `path`; datasets of ddp's own are read as any other LeRobot dataset."""
    return LeRobotRecording(path) if is_lerobot(path) else open_recording(path, as_recorded=False)


def _provenance(store: Store) -> str:
    source = store.attrs["source"]
    left_out = source.get("left_out", {})
    text = f"{source.get('file', 'unknown file')}, sha256 {source['sha256']}"
    return text + (f"; left out: {', '.join(map(str, left_out))}" if left_out else "")


def _check_findings(check: dict[str, Any]) -> list[dict[str, Any]]:
    """Episodes that the replay check found fault with."""
    findings = []
    if check.get("wrong_demos"):
        message = "the actions have another effect than when they were recorded"
        findings.append({"kind": "replay", "message": message, "episodes": check["wrong_demos"]})
    for name, faults in check.get("image_faults", {}).items():
        findings.append({"kind": "images", "message": f"episode {name}: {', '.join(faults)}", "episodes": [name]})
    return findings


def _successes(store: Store) -> dict[str, bool]:
    replayed = {
        str(demo["demo"]): bool(demo["succeeds"]) for demo in store.check.get("demos", []) if "succeeds" in demo
    }
    return replayed | store.policy_episodes
