"""Artefacts of a policy that run without the training code, checked before they are called done.

onnx         encoder.onnx   observations (uint8 images, raw low-dim) -> features
             denoiser.onnx  noisy trajectory, diffusion step, features -> prediction
             policy.json    keys, shapes, action convention, schedule, normaliser of the actions
safetensors  model.safetensors and policy.json
    ddp          a native checkpoint, without what only training needs
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ddp_cli import __version__
from ddp_cli.core.checkpoint import Meta, save_checkpoint
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.windows import Windows, window_bounds, window_steps
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError, DdpError, close_match
from ddp_cli.tasks import CONTROL_HZ, IMAGE_SIZE

FORMAT = 1
FORMATS = ("onnx", "safetensors", "ddp")
TOLERANCE = 1e-4  # largest difference between the graphs and torch


@dataclass(frozen=True)
class Exported:
    """What was written, and how far each graph is from torch (empty for formats without graphs)."""

    files: list[str]
    differences: dict[str, float]


def export(
    policy: DiffusionPolicy, meta: Meta, kind: str, out: Path, examples: Callable[[], dict[str, Tensor]]
) -> Exported:
    """Writes the folder `out`, replacing it; nothing is left of it when the check fails.

    `examples()` gives observations {key: (B, To, ...)} to check with.
    """
    if kind not in FORMATS:
        raise ConfigError(f"unknown format '{kind}'{close_match(kind, FORMATS)}", f"Valid: {', '.join(FORMATS)}.")
    policy = policy.cpu().eval()
    if kind == "ddp":
        save_checkpoint(out, policy.config, policy.state_dict(), meta, None)
        return Exported(sorted(p.name for p in out.iterdir()), {})
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        differences = {}
        if kind == "onnx":
            differences = _write_onnx(policy, partial, examples())
        else:
            (partial / "model.safetensors").write_bytes(save(policy.state_dict()))
        description = describe(policy, meta) | {"files": kind, "differences": differences}
        (partial / "policy.json").write_text(json.dumps(description, indent=2) + "\n")
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Exported(sorted(p.name for p in out.iterdir()), differences)


def describe(policy: DiffusionPolicy, meta: Meta) -> dict[str, Any]:
    """What a program must know to run the policy."""
    config, to = policy.config, policy.config.n_obs_steps
    images = {k: {"shape": [to, 3, IMAGE_SIZE, IMAGE_SIZE], "dtype": "uint8"} for k in config.image_keys}
    low_dim = {k: {"shape": [to, width], "dtype": "float32"} for k, width in config.low_dim.items()}
    normalizer = policy.normalizer
    return {
        "format": FORMAT,
        "policy": config.model_dump(mode="json"),
        "obs": images | low_dim,
        "features": policy.feature_dim,
        "action": meta.get("action"),
        "action_normalizer": {
            "scale": normalizer.get_buffer("action_scale").tolist(),
            "offset": normalizer.get_buffer("action_offset").tolist(),
        },
        "timesteps": [step.timestep for step in policy.steps],
        "alphas_cumprod": policy.noising.alphas_cumprod.tolist(),
        "control_hz": CONTROL_HZ,
        "render": meta.get("render"),
        "store": meta.get("store"),
        "versions": {"ddp": __version__} | {n: importlib.metadata.version(n) for n in ("torch", "diffusers", "onnx")},
    }


def stored_observations(config_keys: list[str], store: Store, n_obs_steps: int, count: int = 8) -> dict[str, Tensor]:
    """`count` observation windows spread over the store."""
    bounds = window_bounds(store.episode_ends, n_obs_steps, 0, 0)
    picked = window_steps(bounds, n_obs_steps)[np.linspace(0, len(bounds) - 1, count).astype(int)]
    rows = picked.ravel()
    arrays = {k: store.read(k)[rows] for k in (*config_keys, "action")}
    windows = Windows(arrays, np.arange(len(rows)).reshape(picked.shape), config_keys, n_obs_steps)
    obs: dict[str, Tensor] = windows.batch(torch.arange(count))["obs"]
    return obs


class _Encoder(nn.Module):
    def __init__(self, policy: DiffusionPolicy, keys: list[str]) -> None:
        super().__init__()
        self.policy, self.keys = policy, keys

    def forward(self, *obs: Tensor) -> Tensor:
        return self.policy.encode_obs(dict(zip(self.keys, obs, strict=True)))


def _write_onnx(policy: DiffusionPolicy, folder: Path, obs: dict[str, Tensor]) -> dict[str, float]:
    """Writes both graphs; returns the largest difference of each from torch on `obs`."""
    config = policy.config
    keys = [*config.image_keys, *config.low_dim]
    inputs = tuple(obs[k].contiguous() for k in keys)
    generator = torch.Generator().manual_seed(0)
    b = len(inputs[0])
    width = config.action_dim + (0 if config.obs_as_cond else policy.feature_dim)
    noisy = torch.randn(b, config.trajectory_steps, width, generator=generator)
    steps = torch.randint(0, config.num_train_timesteps, (b,), generator=generator)
    with torch.no_grad():
        cond = policy.encode_obs(obs)
    batch = torch.export.Dim("batch", min=1, max=4096)
    chain: tuple[Tensor, ...] = (noisy, steps, cond)
    if not config.obs_as_cond:  # inpainting: the features are part of the trajectory
        chain = (noisy, steps)
    graphs: dict[str, tuple[nn.Module, tuple[Tensor, ...], list[str], str]] = {
        "encoder": (_Encoder(policy, keys), inputs, keys, "features"),
        "denoiser": (policy.denoiser, chain, ["trajectory", "timesteps", "features"][: len(chain)], "prediction"),
    }
    differences = {}
    for name, (module, example, names, output) in graphs.items():
        dynamic: Any = tuple({0: batch} for _ in example)
        path = folder / f"{name}.onnx"
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            try:
                torch.onnx.export(
                    module.eval(), example, path, input_names=names, output_names=[output], dynamo=True,
                    dynamic_shapes=(dynamic,) if name == "encoder" else dynamic, external_data=False, verbose=False,
                )  # fmt: skip
            finally:
                logging.disable(logging.NOTSET)
        with torch.no_grad():
            expected = module(*example).numpy()
        differences[name] = max(
            float(np.abs(_run(path, names, [x[:n].numpy() for x in example]) - expected[:n]).max()) for n in (1, b)
        )
        if not differences[name] <= TOLERANCE:
            raise DdpError(
                f"{name}.onnx differs from torch by {differences[name]:.1e}, more than {TOLERANCE:.0e}.", "Report this."
            )
    return differences


def _run(path: Path, names: list[str], values: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(zip(names, values, strict=True)))[0])
