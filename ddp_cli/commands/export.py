"""`ddp export`: a policy that runs without the training code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import console
from ddp_cli.choices import FIRST_SEED
from ddp_cli.commands import options
from ddp_cli.errors import DdpError

if TYPE_CHECKING:
    from torch import Tensor

    from ddp_cli.core.policy import DiffusionPolicy

DEFAULT_OPSET = 18


def export(
    checkpoint: options.Checkpoint = None,
    kind: Annotated[
        str, typer.Option("--format", "-f", help="onnx, pt2, aoti, safetensors, or ddp (a native checkpoint).")
    ] = "onnx",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("policy"),
    precision: Annotated[str, typer.Option("--precision", help="Of the graphs: fp32, fp16 or int8.")] = "fp32",
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    opset: Annotated[int, typer.Option("--opset", help="ONNX operator set.")] = DEFAULT_OPSET,
    episodes: Annotated[
        int, typer.Option("--episodes", "-n", min=0, help="Starts on which it is held against the checkpoint.")
    ] = 3,
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Store to compare on; the run's own by default.", show_default=False),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", help="Upload the folder to this Hugging Face repository.", show_default=False),
    ] = None,
    task: options.AnyTask = None,
    runs: options.Runs = options.RUNS,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write ONNX graphs (held against the checkpoint), torch.export programs, a weights folder, or a native checkpoint.

    A .ckpt file of the published diffusion policy code is read without running anything it carries.
    """
    from dataclasses import asdict

    from ddp_cli.core.checkpoint import load_policy, resolve_checkpoint
    from ddp_cli.core.published import load_published
    from ddp_cli.deploy.export import ExportOptions
    from ddp_cli.deploy.export import export as write_export

    # A checkpoint is replaced by a checkpoint only: it may be all that is left of a training.
    options.check_output(out, overwrite, ("config.json",) if kind == "ddp" else ("policy.json",))
    if checkpoint is not None and checkpoint.is_file():
        folder = checkpoint
        policy, meta = load_published(checkpoint)
    else:
        folder = resolve_checkpoint(checkpoint, runs, task)
        policy, meta = load_policy(folder)
    if out.resolve() == folder.resolve():
        raise DdpError(f"'{out}' is the checkpoint itself.", "Name another output with --out.")
    policy.set_sampler(sampler, inference_steps)
    seeds = tuple(range(FIRST_SEED["eval"], FIRST_SEED["eval"] + episodes))
    how = ExportOptions(kind, precision, opset, seeds)
    with console.progress(f"export {policy.config.task.name}") as update:
        done = write_export(
            policy, meta, how, out, lambda: _examples(policy, folder, data, str(meta.get("render", "fast"))),
            lambda ran: update(ran, episodes, "episodes compared"),
        )  # fmt: skip
    if push_to_hub:
        from ddp_cli.deploy.hub import push

        console.note(f"uploaded to {push(out, push_to_hub)}")
    if json:
        console.print_json({"checkpoint": str(folder), "out": str(out), **asdict(done)})
        return
    console.result(f"{out}: {', '.join(done.files)}, from {folder}")
    for line in done.proof.get("words", []):
        console.result(line)


def _examples(policy: DiffusionPolicy, folder: Path, data: Path | None, render: str) -> dict[str, Tensor]:
    """Observations of the store that is named, the run's own, or, where there is none, of a few starts."""
    from ddp_cli.data.store import Store
    from ddp_cli.deploy.export import observations_from_simulator, observations_from_store
    from ddp_cli.inference.onnx_policy import obs_keys
    from ddp_cli.training.run import store_of

    config = policy.config
    found = data or store_of(folder) or options.known_store(config.task.name, config.obs)
    if data is None and not found.exists():
        return observations_from_simulator(policy, render)
    store = Store(found)
    store.check_task(config.task)
    return observations_from_store(obs_keys(policy), store, config.n_obs_steps)
