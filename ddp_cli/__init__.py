"""ddp: robot demonstrations in, diffusion policies out.

import ddp_cli

store = ddp_cli.open_store("demo/lift.zarr")  # of `make demo`
policy = ddp_cli.load_policy("demo/runs/lift/demo")
actions = policy.act(obs)
print(ddp_cli.evaluate(policy, episodes=20).success_rate)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddp_cli.api import evaluate as evaluate
    from ddp_cli.api import load_policy as load_policy
    from ddp_cli.api import open_store as open_store

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load_policy", "open_store"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loaded on first use: `ddp --help` needs neither torch nor numpy
        return getattr(importlib.import_module("ddp_cli.api"), name)
    raise AttributeError(f"module 'ddp_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
