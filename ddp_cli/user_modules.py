"""Modules of users that a command imports by name: robots and environments."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from ddp_cli.errors import DdpError, describe_exception


def import_user_module(name: str, missing: DdpError) -> ModuleType:
    """Import the module `name`, which may be in the current folder. `missing` is raised if there is none, and an error
    of its type if the module fails.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as with `python -m`
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as e:  # whatever the module does
        if isinstance(e, ModuleNotFoundError) and e.name == name:
            raise missing from None
        message = f"'{name}' cannot be imported: {describe_exception(e)}."
        raise type(missing)(message, f"Try `python -c 'import {name}'`.") from e
