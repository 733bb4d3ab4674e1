"""Choice of the torch device."""

from __future__ import annotations

import torch

from ddp_cli.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is a GPU if there is one. ConfigError if it is not available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ConfigError(
            f"the device '{name}' is not available.", "Valid: auto, cpu, and the devices that `ddp doctor` lists."
        ) from e
    return device
