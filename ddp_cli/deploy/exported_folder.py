"""The folder of an exported policy: its policy.json, and whether all of its files are there and unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddp_cli.core.checkpoint import check_meta
from ddp_cli.deploy.runtime import FORMAT_VERSION, GRAPH_FILE, SPEC_FILE, Policy, PolicyError
from ddp_cli.disk import file_hash
from ddp_cli.errors import CheckpointError

REQUIRED_KEYS = ("policy", "render", "action_normalizer")
PROGRAM_FILES = ("encoder.pt2", "denoiser.pt2")
REQUIRED_FILES = {
    "onnx": (GRAPH_FILE,), "pt2": PROGRAM_FILES, "aoti": PROGRAM_FILES, "safetensors": ("model.safetensors",),
}  # fmt: skip
"""Files of each format. Folders of older versions do not list theirs."""
EXPORT_HINT = "Create one: `ddp export CHECKPOINT --out policy/`."
REPAIR_HINT = "Copy the whole folder again, or export the policy again."


def open_exported_policy(folder: Path, provider: str = "cpu", policy_class: type[Policy] = Policy) -> Policy:
    """The policy in `folder`, to be run, as `policy_class`. CheckpointError if there is none, if it is not ONNX, or if
    a file of the folder is missing or damaged.
    """
    spec = read_spec(folder)
    if spec.get("files", "onnx") != "onnx":
        raise CheckpointError(
            f"'{folder}' was exported as {spec['files']}, which ddp does not run.",
            "Export the policy with --format onnx, or with --format ddp.",
        )
    check_files(folder, spec)
    try:
        return policy_class.load(folder, provider=provider)
    except PolicyError as e:
        raise CheckpointError(str(e)) from e


def read_spec(folder: Path) -> dict[str, Any]:
    """The content of policy.json in a folder exported in any format; CheckpointError if it is damaged or too old."""
    path = folder / SPEC_FILE
    if not path.is_file():
        raise CheckpointError(f"'{folder}' holds no exported policy: {SPEC_FILE} is missing.", EXPORT_HINT)
    try:
        spec = dict(json.loads(path.read_text()))
        version = spec["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(f"'{path}' is damaged.", REPAIR_HINT) from e
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"'{path}' has format {version}, this version of ddp reads format {FORMAT_VERSION}.",
            "Export the policy again.",
        )
    missing = [key for key in REQUIRED_KEYS if key not in spec]
    if missing or not isinstance(spec["policy"], dict):
        raise CheckpointError(f"'{path}' has no {(missing or ['policy'])[0]}.", REPAIR_HINT)
    check_meta(spec, path, REPAIR_HINT)
    return spec


def check_files(folder: Path, spec: dict[str, Any]) -> None:
    """CheckpointError that names the first file of an exported folder that is missing or not the one exported.

    `spec` is the content of its policy.json. README.md may be edited.
    """
    hashes = spec.get("sha256")
    if hashes is None:
        hashes = dict.fromkeys(REQUIRED_FILES.get(str(spec.get("files")), ()))
    if not isinstance(hashes, dict) or any(Path(name).name != name for name in hashes):
        raise CheckpointError(f"'{folder / SPEC_FILE}' is damaged: sha256 is not a list of files.", REPAIR_HINT)
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"'{path}' is missing.", REPAIR_HINT)
        if expected is not None and file_hash(path) != expected:
            raise CheckpointError(
                f"'{path}' is damaged, or belongs to another policy: its hash differs from the one in {SPEC_FILE}.",
                REPAIR_HINT,
            )
