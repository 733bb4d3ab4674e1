"""`ddp export`: a policy that runs without the training code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import choices, console
from ddp_cli.commands import options
from ddp_cli.errors import DdpError
from ddp_cli.seeds import FIRST_SEED

if TYPE_CHECKING:
    from torch import Tensor

    from ddp_cli.core.policy import DiffusionPolicy
    from ddp_cli.deploy.episode_picture import EpisodePicture

EXAMPLES = options.examples(
    "ddp export sample_data/square-policy --out policy/", "ddp export sample_data/square-policy --sampler ddim "
    "--inference-steps 10 --precision fp16 --out policy-fp16/",
)  # fmt: skip

DEFAULT_OPSET = 18
VERIFICATION = "Verification"


def export(
    checkpoint: options.Checkpoint = None,
    task: options.RunTask = None,
    runs: options.Runs = options.RUNS,
    export_format: Annotated[
        choices.ExportFormat,
        typer.Option(
            "--format",
            "-f",
            help="onnx; pt2: torch.export programs; aoti: the same, compiled for this machine; safetensors: weights "
            "and a model card; ddp: a checkpoint without its training state.",
            rich_help_panel=options.CONTENT,
        ),
    ] = "onnx",
    precision: Annotated[
        choices.Precision,
        typer.Option("--precision", help="Precision of the ONNX graphs.", rich_help_panel=options.CONTENT),
    ] = "fp32",
    opset: Annotated[
        int, typer.Option("--opset", help="ONNX operator set.", rich_help_panel=options.CONTENT)
    ] = DEFAULT_OPSET,
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    episodes: Annotated[
        int,
        typer.Option(
            "--episodes",
            "-n",
            min=0,
            help="Episodes in which the export is compared with the checkpoint.",
            rich_help_panel=VERIFICATION,
        ),
    ] = 3,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            help="Store with the observations to compare on; the run's own by default.",
            show_default=False,
            rich_help_panel=VERIFICATION,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", rich_help_panel=options.OUTPUT)] = Path(
        "policy"
    ),
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="Also upload the folder to this Hugging Face repository.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Export a policy to ONNX or another format.

    The exported policy is compared with its checkpoint: predicted actions, whole episodes and latency.
    """
    from dataclasses import asdict

    from ddp_cli.checkpoint_files import follow_link
    from ddp_cli.core.checkpoint import check_not_file, load_policy
    from ddp_cli.core.checkpoint_lookup import resolve_checkpoint
    from ddp_cli.deploy.export import CardSources, ExportOptions, export_policy
    from ddp_cli.evaluation.stored_reports import read_stored_reports

    if checkpoint is not None:
        check_not_file(follow_link(checkpoint))
    # Only a checkpoint replaces a checkpoint: it may be all that is left of a training run.
    markers = ("model.safetensors",) if export_format == "ddp" else ("policy.json",)
    options.check_output(out, overwrite, markers)
    folder = resolve_checkpoint(checkpoint, runs, task)
    policy, meta = load_policy(folder)
    if out.resolve() == folder.resolve():
        raise DdpError(f"'{out}' is the checkpoint itself.", "Choose another output with --out.")
    policy.set_sampler(sampler, inference_steps)
    seeds = tuple(range(FIRST_SEED["eval"], FIRST_SEED["eval"] + episodes))
    store = _find_store(policy, folder, data)
    compared_on, load_observations = _example_observations(policy, store, str(meta.get("render", "fast")))
    settings = ExportOptions(export_format, precision, opset, seeds, compared_on)
    with (
        options.reserve_output(out, overwrite, markers),
        console.progress(f"export {policy.config.task.name}") as update,
    ):
        result = export_policy(
            policy, meta, settings, out, load_observations,
            lambda done: update(done, episodes, "episodes compared"),
            CardSources(read_stored_reports(folder), lambda: _load_picture(policy, store)),
        )  # fmt: skip
    if push_to_hub:
        from ddp_cli.deploy.hub import push_folder

        console.note(f"uploaded to {push_folder(out, push_to_hub)}")
    if json:
        console.print_json({"checkpoint": str(folder), "out": str(out), **asdict(result)})
        return
    console.result(f"{out}: {', '.join(result.files)}, from {folder}")
    for line in result.proof.get("words", []):
        console.result(line)


def _example_observations(
    policy: DiffusionPolicy, store: Path | None, render: str
) -> tuple[str, Callable[[], dict[str, Tensor]]]:
    """What the policies are compared on, and a function that loads it: observations of the store; without one, those
    of a few initial states, or random ones without a simulator.
    """
    from ddp_cli.data.store import Store
    from ddp_cli.deploy.example_observations import (
        observations_from_simulator,
        observations_from_store,
        random_observations,
    )
    from ddp_cli.inference.onnx_policy import obs_keys

    config = policy.config

    def load_random() -> dict[str, Tensor]:
        console.note("there is no store and no simulator: random observations are compared; --data names a store")
        return random_observations(policy)

    if store:
        return "observations of the store", lambda: observations_from_store(
            obs_keys(policy), Store(store).for_task(config.task), config.n_obs_steps
        )
    if config.task.simulator:
        return "observations of initial states", lambda: observations_from_simulator(policy, render)
    return "random observations", load_random


def _load_picture(policy: DiffusionPolicy, store: Path | None) -> EpisodePicture | None:
    """A picture of an episode of the store; None if it cannot be read."""
    from ddp_cli.data.store import Store
    from ddp_cli.deploy.episode_picture import picture_of_store

    try:
        return picture_of_store(Store(store).for_task(policy.config.task)) if store else None
    except DdpError:
        return None


def _find_store(policy: DiffusionPolicy, folder: Path, data: Path | None) -> Path | None:
    """The given store, or the run's own, or the default one; None if it does not exist."""
    from ddp_cli.training.run_folder import find_training_store

    config = policy.config
    path = data or find_training_store(folder) or options.existing_store(config.task.name, config.obs)
    return path if data or path.exists() else None
