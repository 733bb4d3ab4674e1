"""Single settings of the configuration `cfg` of a published checkpoint: looked up, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddp_cli.errors import CheckpointError

Cfg = Mapping[str, Any]


def look_up(cfg: Cfg, place: str) -> Any:
    """The value at a dotted path, None if there is none."""
    value: Any = cfg
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def check_value(path: Path, name: str, value: Any, supported: Any) -> None:
    """CheckpointError if `value` is set to something else than `supported`."""
    if value not in (None, supported):
        raise CheckpointError(f"'{path}' has {name} {value!r}.", f"Only {supported!r} is supported.")


def check_resolved(value: Any, place: str, path: Path) -> None:
    """CheckpointError if a value is a reference to another one, such as `${horizon}`."""
    if isinstance(value, str) and "${" in value:
        raise CheckpointError(
            f"'{path}': its cfg.{place} is '{value}', which was not resolved.",
            "Save the checkpoint with the published train.py, which resolves cfg.",
        )
    if isinstance(value, dict):
        for name, item in value.items():
            check_resolved(item, f"{place}.{name}", path)
