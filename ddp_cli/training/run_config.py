"""The configuration that a run keeps in its `config.json`, read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_cli.errors import CheckpointError, ConfigError
from ddp_cli.json_file import read_json
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.train_config import TrainConfig

CONFIG = "config.json"
FORMAT = 2
READABLE_FORMATS = (1, 2)
"""Format 1 described tasks of robosuite without a schema."""


@dataclass(frozen=True)
class RunConfig:
    """Content of a run's `config.json`."""

    train: TrainConfig
    store: Path
    total_steps: int
    identity: dict[str, Any]
    """What the store held when the run was started."""
    command: str = ""
    """The one that started the run; empty if it was not recorded."""
    init_from: str = ""
    """The checkpoint whose weights the run started with; empty without one."""


def check_is_run(folder: Path) -> None:
    """CheckpointError if `folder` is not that of a run."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"no run in '{folder}'.", "Start one without --resume.")


def parse_run_config(folder: Path) -> RunConfig:
    """Read a run's `config.json`; CheckpointError if it is missing or damaged. Its store may be gone."""
    check_is_run(folder)
    try:
        content = read_json(folder / CONFIG)
    except ConfigError as e:
        raise CheckpointError(e.message, "Restore the file, or start a new run.") from None
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"'{folder / CONFIG}' has format {version}, this version of ddp reads formats up to {FORMAT}.",
            "Resume it with the version that started it.",
        )
    try:
        if version not in READABLE_FORMATS:
            raise ConfigError(f"format {version!r}")
        policy, train_values = content["train"].pop("policy"), content["train"]
        config = TrainConfig(policy=PolicyConfig(**policy), **train_values)
        total = int(content["total_steps"])
        if total < 1:
            raise ConfigError(f"total_steps {total}")
        command = str(content.get("command") or "")
        init_from = str(content.get("init_from") or "")
        return RunConfig(config, Path(content["data"]), total, dict(content["store"]), command, init_from)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        cause = e.message if isinstance(e, ConfigError) else f"{type(e).__name__} {e}"
        raise CheckpointError(f"'{folder / CONFIG}' is damaged: {cause}.", "Start a new run.") from e
