"""Parts of a policy compiled by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from ddp_cli.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")


def compile_function(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn`, compiled for each shape of its arguments on the first call; ConfigError where torch.compile fails."""
    compiled = torch.compile(fn, dynamic=False)

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return compiled(*args, **kwargs)
        except Exception as e:  # a missing compiler raises one of many types
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise ConfigError(f"torch.compile does not work on this machine: {reason}", "Use --engine torch.") from e

    return call
