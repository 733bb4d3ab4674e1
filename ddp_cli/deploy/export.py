"""Exports a policy to formats that run without the training code, and checks the result.

onnx         policy.onnx    observations and noise -> actions, including all denoising steps
             encoder.onnx, denoiser.onnx, its parts
             runtime.py     runs it, with numpy and onnxruntime
             action_limits.py  the limits of its actions, those of evaluation
             resize.py      resizes images of the size in the recording, as at conversion
             streaming.py   computes the next actions while the robot moves
             device_check.py  checks the folder and measures the latency, on the computer of the robot
pt2          encoder.pt2, denoiser.pt2, saved by torch.export
aoti         the same, compiled for this machine by AOTInductor: run without Python
safetensors  model.safetensors, the weights
ddp          a native checkpoint without its training state

All but the last include policy.json (inputs and outputs, hashes of the other files), README.md (the model card) and,
where there are images, episode.jpg; onnx, pt2 and aoti also proof.json (results of the checks). README.md and
episode.jpg have no hashes: they may be edited. No file contains paths of this machine, except the compiled libraries of
aoti.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import onnx
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ddp_cli import action_limits, resize
from ddp_cli.choices import ExportFormat, Precision
from ddp_cli.core.checkpoint import Meta, save_checkpoint
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.deploy import device_check, runtime, streaming
from ddp_cli.deploy.episode_picture import EpisodePicture
from ddp_cli.deploy.export_check import TOLERANCES, check_differences, check_folder, summary_lines
from ddp_cli.deploy.metadata import policy_metadata
from ddp_cli.deploy.model_card import PICTURE_FILE, format_model_card
from ddp_cli.deploy.onnx_export import (
    Encoder,
    convert_to_float16,
    denoiser_input_names,
    dynamic_batch,
    export_graph,
    join_graphs,
    make_example_inputs,
    max_difference,
    quantize_to_int8,
)
from ddp_cli.disk import atomic_folder, file_hash
from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.evaluation.stored_reports import StoredReports
from ddp_cli.inference.folded_denoiser import supports_folding
from ddp_cli.inference.onnx_policy import DEFAULT_OPSET, build_policy_graph, obs_keys

MIN_OPSET, MAX_OPSET = 18, 25


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    seeds        initial states from which the exported policy is compared with the checkpoint
    compared_on  what the example observations are, for proof.json and the model card
    """

    format: ExportFormat = "onnx"
    precision: Precision = "fp32"
    opset: int = DEFAULT_OPSET
    seeds: tuple[int, ...] = ()
    compared_on: str = "example observations"


@dataclass(frozen=True)
class CardSources:
    """What the model card shows besides the policy: evaluations of the checkpoint, and a picture of an episode, loaded
    if none was run to compare.
    """

    reports: StoredReports = field(default_factory=StoredReports)
    load_picture: Callable[[], EpisodePicture | None] = lambda: None


@dataclass(frozen=True)
class ExportResult:
    """Names of the files, and the content of proof.json (empty for safetensors and ddp)."""

    files: list[str]
    proof: dict[str, Any]


def export_policy(
    policy: DiffusionPolicy,
    meta: Meta,
    options: ExportOptions,
    out: Path,
    load_example_obs: Callable[[], dict[str, Tensor]],
    on_episode: Callable[[int], None] = lambda _: None,
    card: CardSources | None = None,
) -> ExportResult:
    """Write the folder `out`, replacing an existing one; nothing is written if a check fails.

    load_example_obs   returns observations {key: (B, To, ...)} for the comparison
    on_episode         called with the number of compared episodes
    card               what the model card shows besides

    UnknownNameError or ConfigError for invalid options, DdpError if the export differs from the checkpoint.
    """
    _validate_options(options)
    policy = policy.cpu().eval()
    if options.format == "ddp":
        # The configuration may have been changed after `meta` was read: by set_sampler.
        save_checkpoint(out, policy.config, policy.state_dict(), meta, None)
        return ExportResult(sorted(p.name for p in out.iterdir()), {})
    with atomic_folder(out) as partial:
        proof, picture = _write_folder(policy, meta, options, partial, load_example_obs, on_episode)
        _write_card(partial, meta, card or CardSources(), proof, picture)
    return ExportResult(sorted(p.name for p in out.iterdir()), proof)


def _validate_options(options: ExportOptions) -> None:
    if options.format not in get_args(ExportFormat):
        raise UnknownNameError("format", options.format, get_args(ExportFormat))
    if options.precision not in get_args(Precision):
        raise UnknownNameError("precision", options.precision, get_args(Precision))
    if options.format != "onnx" and (options.precision, options.opset) != ("fp32", DEFAULT_OPSET):
        raise ConfigError(f"--precision and --opset apply to onnx, not to {options.format}.", "Remove them.")
    if not MIN_OPSET <= options.opset <= MAX_OPSET:
        raise ConfigError(f"opset = {options.opset} is not supported.", f"Valid: {MIN_OPSET} to {MAX_OPSET}.")


def _write_folder(
    policy: DiffusionPolicy,
    meta: Meta,
    options: ExportOptions,
    folder: Path,
    load_example_obs: Callable[[], dict[str, Tensor]],
    on_episode: Callable[[int], None],
) -> tuple[dict[str, Any], EpisodePicture | None]:
    """Write all files but the model card. Returns the content of proof.json, and a picture of a compared episode."""
    spec = policy_metadata(policy, meta) | {"files": options.format, "precision": options.precision}
    _write_json(folder / runtime.SPEC_FILE, spec)
    proof: dict[str, Any] = {}
    picture = None
    if options.format == "safetensors":
        weights = {name: tensor.contiguous() for name, tensor in policy.state_dict().items()}
        (folder / "model.safetensors").write_bytes(save(weights))
    else:
        obs = load_example_obs()
        write = _write_onnx if options.format == "onnx" else _write_programs
        proof = {"tolerance": TOLERANCES[options.precision], "observations": options.compared_on}
        proof["differences"] = write(policy, options, folder, obs)
        check_differences(proof)
        if options.format == "onnx":
            picture = check_folder(folder, policy, meta, obs, options.seeds, proof, on_episode)
        proof["words"] = summary_lines(proof)
        _write_json(folder / "proof.json", proof)
    hashes = {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != runtime.SPEC_FILE}
    _write_json(folder / runtime.SPEC_FILE, spec | {"sha256": hashes})
    return proof, picture


def _write_card(
    folder: Path, meta: Meta, card: CardSources, proof: dict[str, Any], picture: EpisodePicture | None
) -> None:
    """Write README.md and its picture. They have no hashes: users may edit them."""
    picture = picture or card.load_picture()
    if picture:
        (folder / PICTURE_FILE).write_bytes(picture.jpeg)
    spec = json.loads((folder / runtime.SPEC_FILE).read_text())
    text = format_model_card(spec, meta, proof, card.reports, picture.caption if picture else None)
    (folder / "README.md").write_text(text)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


class _Part(NamedTuple):
    """A module that is exported on its own."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: list[str]
    output_name: str


def _split_policy(policy: DiffusionPolicy, obs: dict[str, Tensor]) -> dict[str, _Part]:
    """Encoder and denoiser, with example inputs."""
    encoder_inputs, denoiser_inputs = make_example_inputs(policy, obs)
    keys = obs_keys(policy)
    # No key contains a dot, and a graph refuses an output with the name of an input.
    encoder_output = "encoder.features" if "features" in keys else "features"
    return {
        "encoder": _Part(Encoder(policy), encoder_inputs, keys, encoder_output),
        "denoiser": _Part(policy.denoiser, denoiser_inputs, denoiser_input_names(policy), "prediction"),
    }


def _write_onnx(
    policy: DiffusionPolicy, options: ExportOptions, folder: Path, obs: dict[str, Tensor]
) -> dict[str, float]:
    """Write the graphs; returns the difference of each part from torch."""
    differences = {}
    for name, part in _split_policy(policy, obs).items():
        path = folder / f"{name}.onnx"
        export_graph(part.module, part.inputs, part.input_names, part.output_name, options.opset, path)
        if options.precision == "fp16":
            convert_to_float16(path)
        elif options.precision == "int8":
            quantize_to_int8(path)
        with torch.no_grad():
            expected = part.module(*part.inputs)
        run = _load_graph(path, part.input_names)
        differences[name] = max(
            max_difference(run(*(x[:n] for x in part.inputs)), expected[:n]) for n in (1, len(expected))
        )
    if options.precision == "fp32" and supports_folding(policy.config):
        graph = build_policy_graph(policy, options.opset)
    else:
        graph = join_graphs(policy, *(onnx.load(folder / f"{name}.onnx") for name in differences))
    onnx.save(graph, folder / runtime.GRAPH_FILE)
    for module in (runtime, action_limits, resize, streaming, device_check):
        source = Path(str(module.__file__))
        shutil.copy(source, folder / source.name)
    return differences


def _load_graph(path: Path, input_names: list[str]) -> Callable[..., Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, {k: x.numpy() for k, x in zip(input_names, inputs, strict=True)})[0]


def _write_programs(
    policy: DiffusionPolicy, options: ExportOptions, folder: Path, obs: dict[str, Tensor]
) -> dict[str, float]:
    """Write encoder and denoiser as torch.export programs; returns the difference of each, read back, from torch."""
    write = _compile_program if options.format == "aoti" else _save_program
    differences = {}
    for name, part in _split_policy(policy, obs).items():
        shapes = dynamic_batch(part.module, part.inputs)
        program = torch.export.export(part.module.eval(), part.inputs, dynamic_shapes=shapes, strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # holds paths of this machine
        run = write(program, folder / f"{name}.pt2")
        with torch.no_grad():
            differences[name] = max(
                max_difference(run(*(x[:n] for x in part.inputs)), part.module(*(x[:n] for x in part.inputs)))
                for n in (1, len(part.inputs[0]))
            )
    return differences


def _save_program(program: torch.export.ExportedProgram, path: Path) -> Callable[..., Tensor]:
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _compile_program(program: torch.export.ExportedProgram, path: Path) -> Callable[..., Tensor]:
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as e:  # a missing compiler raises one of many types
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise ConfigError(f"AOTInductor does not work on this machine: {reason}", "Use --format pt2.") from e
    return torch._inductor.aoti_load_package(str(path))
