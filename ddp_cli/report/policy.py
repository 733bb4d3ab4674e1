"""The part of a page that shows a policy: a checkpoint or an exported folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddp_cli.core.checkpoint import load_meta, load_policy
from ddp_cli.data.lint_source import dimension_names
from ddp_cli.deploy.exported_folder import read_spec
from ddp_cli.deploy.policy_inspection import describe_policy, inspect_policy
from ddp_cli.deploy.policy_source import is_exported
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.report.page import Section
from ddp_cli.report.schema_table import schema_rows

PROOF_FILE = "proof.json"


def policy_section(path: Path) -> Section:
    """What a page shows of the policy at `path`; CheckpointError if it is damaged."""
    contents = inspect_policy(path)
    folder = Path(contents["path"])
    meta: dict[str, Any] = read_spec(folder) if is_exported(folder) else load_meta(folder)
    config = PolicyConfig(**meta["policy"])
    schema = config.task.schema
    observed = schema.model_copy(
        update={"cameras": config.cameras, "vectors": {key: schema.vectors[key] for key in config.low_dim}}
    )
    proof = _read_proof(folder)
    names = dimension_names(observed, config.action_parts)
    return {
        "kind": "policy",
        "title": path.name,
        "facts": [row for row in describe_policy(contents) if row[0] != "files"],
        "schema": schema_rows(observed, config.action_parts),
        "normalization": [] if is_exported(folder) else _normalization(folder, names),
        "files": [[name, size] for name, size in contents["files"].items()],
        "proof": [str(line) for line in proof.get("words", [])],
        "latency": proof.get("latency"),
        "is_exported": contents["kind"] != "checkpoint",
    }


def _normalization(folder: Path, names: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """What the normalizer of a checkpoint does to each value: `low` becomes -1, and `high` 1."""
    normalizer = load_policy(folder)[0].normalizer
    return [
        {
            "label": label, "normalization": kind, "low": low, "high": high, "mean": (low + high) / 2,
            "std": (high - low) / 2,
        }
        for key, kinds in normalizer.columns.items()
        for label, kind, low, high in zip(names[key], kinds, *normalizer.bounds(key), strict=True)
    ]  # fmt: skip


def _read_proof(folder: Path) -> dict[str, Any]:
    """What the export checked; empty for policies that have no such file."""
    try:
        proof = json.loads((folder / PROOF_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    is_valid = isinstance(proof, dict) and isinstance(proof.get("words", []), list)
    return proof if is_valid else {}
