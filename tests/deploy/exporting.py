"""Policies and folders that the tests of exports share."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import tiny_config

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.data.store import Store
from ddp_cli.deploy.example_observations import observations_from_store
from ddp_cli.deploy.export import ExportOptions, ExportResult, export_policy
from ddp_cli.inference.onnx_policy import obs_keys


def export_checkpoint(checkpoint: Path, store: Store, out: Path, **options: object) -> ExportResult:
    """Exports a checkpoint, compared on observations of the store."""
    policy, meta = load_policy(checkpoint)
    settings = ExportOptions(**options)  # type: ignore[arg-type]
    return export_policy(policy, meta, settings, out, lambda: observations_from_store(obs_keys(policy), store, 2))


def random_policy(**settings: object) -> DiffusionPolicy:
    """A policy in which every weight has an effect, including those that are initialised to zero and the normalizer."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(tiny_config(**settings).policy)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for name, buffer in policy.normalizer.named_buffers():
        buffer.uniform_(0.5, 1.5) if name.endswith("scale") else buffer.uniform_(-0.3, 0.3)
    return policy.eval()
