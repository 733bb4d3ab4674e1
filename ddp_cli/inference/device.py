"""Where a policy is computed."""

from __future__ import annotations

import torch

from ddp_cli.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ConfigError(f"no device '{name}' here.", "Valid: auto, cpu, and what `ddp doctor` lists.") from e
    return device
