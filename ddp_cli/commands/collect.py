"""`ddp collect`: demonstrations by scripted policies, also in the states that a trained policy visits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.seeds import FIRST_POLICY_SEED, FIRST_SEED, MAX_SEED

if TYPE_CHECKING:
    from ddp_cli.data.collection import CollectionResult
    from ddp_cli.data.policy_demonstrations import ActingPolicy
    from ddp_cli.deploy.policy_source import PolicySource
    from ddp_cli.parallel import Workers
    from ddp_cli.tasks import Task

EXAMPLES = options.examples(
    "ddp collect --task lift --episodes 20 --out lift.hdf5",
    "ddp collect --policy sample_data/square-policy --takeover -n 40 --out corrections.hdf5",
)


def collect(
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "-t",
            help="lift, can, square or two_arm_lift.",
            show_default="square, or the task of --policy",
            rich_help_panel=options.SOURCE,
        ),
    ] = None,
    robot: Annotated[
        str,
        typer.Option(
            "--robot",
            help="Arm that acts: Panda or IIWA; the task is then called lift_iiwa, and so on.",
            rich_help_panel="Content",
        ),
    ] = "Panda",
    episodes: Annotated[
        int,
        typer.Option(
            "--episodes",
            "-n",
            min=1,
            help="Demonstrations to record: successful ones, or with --policy alone all of its episodes.",
            rich_help_panel="Content",
        ),
    ] = 100,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            max=MAX_SEED,
            help="Seed of the first episode; following episodes count up.",
            show_default=f"{FIRST_SEED['collect']}, or {FIRST_POLICY_SEED} with --policy",
            rich_help_panel="Content",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            help="Checkpoint, run or exported folder of a policy that acts, while the scripted policy says what to do "
            "instead (DAgger).",
            show_default=False,
            rich_help_panel=options.POLICY,
        ),
    ] = None,
    takeover: Annotated[
        bool,
        typer.Option(
            "--takeover",
            help="Where the policy has strayed, the scripted policy takes control and brings the episode to success.",
            rich_help_panel=options.POLICY,
        ),
    ] = False,
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    engine: options.Engine = "auto",
    device: options.Device = "auto",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="HDF5 file to write.", rich_help_panel=options.OUTPUT)
    ] = Path("demos.hdf5"),
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
) -> None:
    """Record demonstrations of a scripted policy, or episodes of a trained policy with its labels.

    The output is an HDF5 file in robomimic's layout. Finished demonstrations are kept after an interruption or an
    error; the same command, or one with a larger -n, continues.
    """
    from dataclasses import asdict

    from ddp_cli.deploy.policy_source import open_policy_source, resolve_policy

    started = time.perf_counter()
    if policy is None:
        _check_policy_options(
            {
                "--takeover": takeover, "--sampler": sampler, "--inference-steps": inference_steps,
                "--engine": engine != "auto", "--device": device != "auto",
            }
        )  # fmt: skip
    first_seed = (FIRST_POLICY_SEED if policy else FIRST_SEED["collect"]) if seed is None else seed
    with options.reserve_output(out, overwrite):
        options.warn_of_evaluation_seeds(range(first_seed, first_seed + episodes))
        source, acting = None, None
        if policy:
            folder = resolve_policy(policy, options.RUNS, None)
            on_device = options.device_of_workers(device, cluster)
            source = open_policy_source(folder, on_device, sampler, inference_steps, engine)
            acting = _acting_policy(source, takeover, preload=cluster is None)
        described = _find_task(task, robot, source)
        with options.open_workers(workers, cluster) as processes:
            result = run_collection(described, episodes, out, first_seed, processes, acting)
    seconds = time.perf_counter() - started
    if json:
        console.print_json({"out": str(out), **asdict(result), "seconds": seconds})
        return
    console.result(
        f"{out}: {result.demos} {'episodes' if policy else 'demonstrations'} of {described.name}, {result.steps} "
        f"steps, {_describe_outcomes(result)}, in {console.duration(seconds)}"
    )


def _check_policy_options(given: dict[str, object]) -> None:
    """DdpError if one of these options, which are about a policy that acts, is given without one."""
    names = [name for name, value in given.items() if value]
    if names:
        raise DdpError(f"{names[0]} needs a policy that acts.", "Name one with --policy CHECKPOINT.")


def _acting_policy(source: PolicySource, takeover: bool, preload: bool) -> ActingPolicy:
    """`source` as a policy that acts; `preload` what processes of this machine need for it."""
    from ddp_cli.data.policy_demonstrations import ActingPolicy
    from ddp_cli.parallel import preload_workers

    console.note(f"policy {source.folder}, engine {source.engine}")
    if preload:
        preload_workers("ddp_cli.inference.agent", "ddp_cli.inference.onnx_policy")
    return ActingPolicy(source.make_agent, source.render, takeover, source.settings())


def _find_task(name: str | None, robot: str, source: PolicySource | None) -> Task:
    """The task that is named, or that of the policy; ConfigError if they are not the same."""
    from ddp_cli.task_file import read_task
    from ddp_cli.tasks import with_robot

    if source and name is None and robot == "Panda":
        return source.task
    described = read_task(name or "square")
    described = with_robot(described, robot) if robot != "Panda" else described
    if source and source.task.name != described.name:
        raise ConfigError(
            f"'{source.folder}' is a policy of {source.task.name}, not of {described.name}.",
            "Leave out --task and --robot, or name another policy.",
        )
    return source.task if source else described


def _describe_outcomes(result: CollectionResult) -> str:
    if result.policy_successes is None:
        return f"{result.failures} of {result.attempts} attempts failed"
    text = f"the policy succeeded in {result.policy_successes}"
    if failed := result.demos - result.policy_successes - (result.takeovers or 0):
        text += f", failed in {failed}"
    if result.takeovers:
        text += f", taken over in {result.takeovers}"
    if result.failures:
        text += f"; the scripted policy failed, too, in {result.failures} more"
    return text


def run_collection(
    task: Task,
    episodes: int,
    out: Path,
    seed: int = FIRST_SEED["collect"],
    workers: Workers | None = None,
    policy: ActingPolicy | None = None,
) -> CollectionResult:
    """`data.collection.collect` with a progress bar."""
    from ddp_cli.data.collection import collect as collect_demos
    from ddp_cli.parallel import default_workers

    with console.progress(f"collect {task.name}") as update:
        return collect_demos(
            task, episodes, out, seed, workers or default_workers(),
            lambda demos, attempts, failures: update(demos, episodes, f"{failures} of {attempts} attempts failed"),
            policy,
        )  # fmt: skip
