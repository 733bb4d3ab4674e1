"""The part of a page that shows a policy: a checkpoint or an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddp_cli.config import PolicyConfig
from ddp_cli.core.checkpoint import load_meta
from ddp_cli.deploy.exported_folder import read_spec
from ddp_cli.deploy.policy_inspection import describe_policy, inspect_policy
from ddp_cli.deploy.policy_source import is_exported
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
    return {
        "kind": "policy",
        "title": path.name,
        "facts": [row for row in describe_policy(contents) if row[0] != "files"],
        "schema": schema_rows(observed, config.action_parts),
        "files": [[name, size] for name, size in contents["files"].items()],
        "proof": [str(line) for line in proof.get("words", [])],
        "latency": proof.get("latency"),
        "is_exported": contents["kind"] != "checkpoint",
    }


def _read_proof(folder: Path) -> dict[str, Any]:
    """What the export checked; empty for policies that have no such file."""
    try:
        proof = json.loads((folder / PROOF_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    is_valid = isinstance(proof, dict) and isinstance(proof.get("words", []), list)
    return proof if is_valid else {}
