"""What a machine of a cluster computes with: results do not depend on the machine only where this is the same."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ddp_cli import __version__
from ddp_cli.disk import files_hash
from ddp_cli.errors import ConfigError

PACKAGES = ("numpy", "torch", "onnxruntime", "mujoco", "robosuite")


@functools.cache
def software() -> dict[str, str]:
    """Versions of everything that takes part in a result, by name. That of ddp includes a hash of its code."""
    package = Path(__file__).parents[1]
    versions = {"Python": platform.python_version()}
    versions["ddp"] = f"{__version__} ({files_hash(package, package.rglob('*.py'))[:8]})"
    return versions | {name: _version(name) for name in PACKAGES}


def processor() -> str:
    """The model of the processor, as the operating system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def check_software(required: Mapping[str, str]) -> None:
    """ConfigError if the software of this machine is not that of the machine where the command runs."""
    for name, expected in required.items():
        if software()[name] != expected:
            raise ConfigError(
                f"the node '{platform.node()}' has {name} {software()[name]}, but the command runs with {expected}.",
                "Install the same versions on all machines of the cluster.",
            )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
