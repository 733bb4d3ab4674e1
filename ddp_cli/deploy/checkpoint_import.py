"""Converts checkpoints of the published diffusion policy code to checkpoint folders."""

from __future__ import annotations

from pathlib import Path

from ddp_cli.core.checkpoint import save_checkpoint
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.published import load_published
from ddp_cli.errors import DdpError


def import_checkpoint(path: Path, out: Path) -> DiffusionPolicy:
    """Convert the `.ckpt` file `path` to the checkpoint folder `out`, replacing an existing one; returns the policy.

    The folder has the EMA weights, the normalizer and the configuration, but no training state. Nothing in the file is
    executed. CheckpointError if the file is damaged or holds another kind of policy.
    """
    if path.is_file() and path.resolve().is_relative_to(out.resolve()):
        raise DdpError(f"'{out}' contains '{path}' and would be replaced.", "Choose another output.")
    policy, meta = load_published(path)
    save_checkpoint(out, policy.config, policy.state_dict(), meta, None)
    return policy
