"""Artefacts of a policy that run without the training code, checked before they are called done.

onnx         policy.onnx    observations and noise -> actions: the whole chain
             encoder.onnx, denoiser.onnx, its parts
             runtime.py     runs it, with numpy and onnxruntime
pt2          encoder.pt2, denoiser.pt2, as torch.export saves them
aoti         the same, compiled for this machine by AOTInductor: they run without Python
safetensors  model.safetensors, the weights
ddp          a native checkpoint, without what only training needs

All but the last with policy.json (what goes in and out) and README.md, those that compute with proof.json (what was
compared).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save
from torch import Tensor

from ddp_cli.core.checkpoint import Meta, save_checkpoint
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.windows import Windows, window_bounds, window_steps
from ddp_cli.data.store import Store
from ddp_cli.deploy import export_check as proof
from ddp_cli.deploy import runtime
from ddp_cli.deploy.exported_policy import open_policy
from ddp_cli.deploy.metadata import describe, readme
from ddp_cli.deploy.onnx_export import (
    Encoder,
    denoiser_names,
    difference,
    example,
    half,
    joined,
    quantized,
    trace,
)
from ddp_cli.disk import atomic_folder
from ddp_cli.errors import ConfigError, DdpError, close_match
from ddp_cli.inference.folded_denoiser import supports_folding
from ddp_cli.inference.onnx_policy import DEFAULT_OPSET, build, obs_keys
from ddp_cli.sim.simulator import Simulator

FORMATS = ("onnx", "pt2", "aoti", "safetensors", "ddp")
TOLERANCES = {"fp32": 1e-4, "fp16": 3e-2, "int8": 3e-1}
"""Largest difference from torch in float32, by precision. Actions reach from -1 to 1."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export. `episodes`: starts on which the exported policy is held against the checkpoint."""

    kind: str = "onnx"
    precision: str = "fp32"
    opset: int = DEFAULT_OPSET
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExportResult:
    """What was written, and what was shown of it (empty for formats without graphs)."""

    files: list[str]
    proof: dict[str, Any]


def export(
    policy: DiffusionPolicy,
    meta: Meta,
    how: ExportOptions,
    out: Path,
    examples: Callable[[], dict[str, Tensor]],
    progress: Callable[[int], None] = lambda _: None,
) -> ExportResult:
    """Writes the folder `out`, replacing it; nothing is left of it when the proof fails.

    `examples()` gives observations {key: (B, To, ...)} to compare on; `progress` hears of episodes.
    """
    _check(how)
    policy = policy.cpu().eval()
    if how.kind == "ddp":
        save_checkpoint(out, policy.config, policy.state_dict(), meta, None)
        return ExportResult(sorted(p.name for p in out.iterdir()), {})
    with atomic_folder(out) as partial:
        shown = _write(policy, meta, how, partial, examples, progress)
    return ExportResult(sorted(p.name for p in out.iterdir()), shown)


def _check(how: ExportOptions) -> None:
    for what, value, valid in (("format", how.kind, FORMATS), ("precision", how.precision, TOLERANCES)):
        if value not in valid:
            raise ConfigError(f"unknown {what} '{value}'{close_match(value, valid)}", f"Valid: {', '.join(valid)}.")
    if how.kind != "onnx" and (how.precision, how.opset) != ("fp32", DEFAULT_OPSET):
        raise ConfigError(f"--precision and --opset are for onnx, not for {how.kind}.", "Leave them out.")
    if not 18 <= how.opset <= 25:
        raise ConfigError(f"opset = {how.opset} cannot be written.", "Valid: 18 to 25.")


def _write(
    policy: DiffusionPolicy,
    meta: Meta,
    how: ExportOptions,
    folder: Path,
    examples: Callable[[], dict[str, Tensor]],
    progress: Callable[[int], None],
) -> dict[str, Any]:
    spec = describe(policy, meta) | {"files": how.kind, "precision": how.precision}
    (folder / runtime.SPEC).write_text(json.dumps(spec, indent=2) + "\n")
    shown: dict[str, Any] = {}
    if how.kind == "safetensors":
        (folder / "model.safetensors").write_bytes(save(policy.state_dict()))
    else:
        obs = examples()
        write = _onnx if how.kind == "onnx" else _programs
        shown = {"tolerance": TOLERANCES[how.precision], "differences": write(policy, how, folder, obs)}
        _check_differences(shown)
        if how.kind == "onnx":
            exported = open_policy(folder)
            shown["differences"]["actions"] = proof.action_difference(policy, exported, obs)
            _check_differences(shown)
        if how.kind == "onnx":
            shown["latency"] = proof.latency(exported, obs)
            if how.seeds:
                shown["episodes"] = proof.episodes(
                    policy, exported, str(meta.get("render", "fast")), how.seeds, progress
                )
        shown["words"] = proof.in_words(shown)
        (folder / "proof.json").write_text(json.dumps(shown, indent=2) + "\n")
    (folder / "README.md").write_text(readme(spec, how.kind, shown))
    return shown


def _check_differences(shown: dict[str, Any]) -> None:
    for name, value in shown["differences"].items():
        if not value <= shown["tolerance"]:
            raise DdpError(
                f"{name} differ from torch by {value:.1e}, more than {shown['tolerance']:.0e}.",
                "Use --precision fp32, or report this.",
            )


def _parts(policy: DiffusionPolicy, obs: dict[str, Tensor]) -> dict[str, Any]:
    """Encoder and denoiser: module, example, names of the inputs, name of the output."""
    inputs, chain = example(policy, obs)
    return {
        "encoder": (Encoder(policy), inputs, obs_keys(policy), "features"),
        "denoiser": (policy.denoiser, chain, denoiser_names(policy), "prediction"),
    }


def _onnx(policy: DiffusionPolicy, how: ExportOptions, folder: Path, obs: dict[str, Tensor]) -> dict[str, float]:
    """Writes the graphs; returns how far the parts are from torch, for one and for all examples."""
    differences = {}
    for name, (module, inputs, names, output) in _parts(policy, obs).items():
        path = folder / f"{name}.onnx"
        trace(module, inputs, names, output, how.opset, path)
        {"fp32": lambda _: None, "fp16": half, "int8": quantized}[how.precision](path)
        with torch.no_grad():
            expected = module(*inputs).numpy()
        session = _session(path)
        differences[name] = max(
            difference(
                session.run(None, {k: x[:n].numpy() for k, x in zip(names, inputs, strict=True)})[0], expected[:n]
            )
            for n in (1, len(expected))
        )
    if how.precision == "fp32" and supports_folding(policy.config):
        whole = build(policy, how.opset)
    else:
        whole = joined(policy, *(onnx.load(folder / f"{name}.onnx") for name in differences))
    onnx.save(whole, folder / runtime.GRAPH)
    shutil.copy(Path(runtime.__file__), folder / "runtime.py")
    return differences


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _programs(policy: DiffusionPolicy, how: ExportOptions, folder: Path, obs: dict[str, Tensor]) -> dict[str, float]:
    """Writes encoder and denoiser as torch.export has them; returns how far what is read back is from them."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    differences = {}
    for name, (module, inputs, _, _) in _parts(policy, obs).items():
        dynamic: Any = tuple({0: batch} for _ in inputs)
        program = torch.export.export(
            module.eval(), inputs, dynamic_shapes=(dynamic,) if name == "encoder" else dynamic, strict=False
        )
        read = (_compiled if how.kind == "aoti" else _saved)(program, folder / f"{name}.pt2")
        with torch.no_grad():
            differences[name] = max(
                difference(read(*(x[:n] for x in inputs)), module(*(x[:n] for x in inputs)))
                for n in (1, len(inputs[0]))
            )
    return differences


def _saved(program: torch.export.ExportedProgram, path: Path) -> Callable[..., Tensor]:
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _compiled(program: torch.export.ExportedProgram, path: Path) -> Callable[..., Tensor]:
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as e:  # a missing compiler shows as one of many
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise ConfigError(f"AOTInductor does not work here: {reason}", "Use --format pt2.") from e
    return torch._inductor.aoti_load_package(str(path))


def observations_from_store(
    config_keys: list[str], store: Store, n_obs_steps: int, count: int = 8
) -> dict[str, Tensor]:
    """`count` observation windows spread over the store."""
    bounds = window_bounds(store.episode_ends, n_obs_steps, 0, 0)
    keys = (*config_keys, "action")
    picked = window_steps(bounds, n_obs_steps)[np.linspace(0, len(bounds) - 1, count).astype(int)]
    rows = {key: np.concatenate([store.read(key, rows=slice(w[0], w[-1] + 1)) for w in picked]) for key in keys}
    windows = Windows(rows, np.arange(picked.size).reshape(picked.shape), config_keys, n_obs_steps)
    obs: dict[str, Tensor] = windows.batch(torch.arange(count))["obs"]
    return obs


def observations_from_simulator(policy: DiffusionPolicy, render: str, count: int = 4) -> dict[str, Tensor]:
    """What is seen at `count` starts, where there is no store: {key: (count, To, ...)}."""
    sim = Simulator(policy.config.task, render, policy.config.actions)
    seen: dict[str, list[Tensor]] = {key: [] for key in obs_keys(policy)}
    for seed in range(count):
        sim.reset(seed)
        frame = sim.observe(policy.config.obs)
        for key, windows in seen.items():
            value = torch.from_numpy(np.stack([frame[key]] * policy.config.n_obs_steps))
            windows.append(value.permute(0, 3, 1, 2) if value.ndim == 4 else value)
    sim.close()
    return {key: torch.stack(windows) for key, windows in seen.items()}
