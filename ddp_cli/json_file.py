"""Reads a JSON object from a file that a user may have written or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddp_cli.errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ConfigError if there is none."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no file '{path}'.", "Give the path of a JSON file.") from None
    except OSError as e:
        raise ConfigError(f"'{path}' cannot be read: {e.strerror}.", "Give the path of a JSON file.") from None
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"'{path}' is not JSON: {e}.", "See `ddp train --help`.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"'{path}' contains no JSON object.", 'Write {"key": value, ...}.')
    return value
