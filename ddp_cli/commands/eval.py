"""`ddp eval`: the success rate of a policy."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddp_cli import console
from ddp_cli.commands import env_options, options
from ddp_cli.commands.last_checkpoints import evaluate_last
from ddp_cli.commands.measurement import EvalOptions, measure
from ddp_cli.commands.open_loop import evaluate_open_loop
from ddp_cli.commands.paired_comparison import compare
from ddp_cli.commands.report import page_of_evaluation, reserve_page
from ddp_cli.commands.sweep import parse_sweep, sweep
from ddp_cli.deploy.policy_source import resolve_policy
from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.parallel import default_workers, preload_workers
from ddp_cli.seeds import FIRST_SEED, MAX_SEED, purposes_of_seeds

if TYPE_CHECKING:
    from ddp_cli.training.distributed import Processes

EXAMPLES = options.examples(
    "ddp eval sample_data/square-policy -n 10",
    "ddp eval sample_data/square-policy -n 10 --sweep inference-steps=10,100 --sweep sampler=ddim,dpm",
)

DEFAULT_EPISODES = 50
MAX_EPISODES = 2000  # with --until-ci
OBSERVED = ("object", "cameras", "vectors", "action")
"""Fields of a task that its episodes do not depend on: policies may observe images of different sizes, for example."""


def evaluate(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CHECKPOINT]...",
            help="Checkpoint, run or exported folder; two to compare them; by default the newest run's best "
            "checkpoint.",
            show_default=False,
        ),
    ] = None,
    policy: options.ExportedPolicy = None,
    task: options.RunTask = None,
    runs: options.Runs = options.RUNS,
    episodes: Annotated[
        int | None,
        typer.Option(
            "--episodes",
            "-n",
            min=1,
            help="Number of episodes; 50 by default.",
            show_default=False,
            rich_help_panel=options.EPISODES,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            max=MAX_SEED,
            help="Seed of the first episode; following episodes count up.",
            show_default=str(FIRST_SEED["eval"]),
            rich_help_panel=options.EPISODES,
        ),
    ] = None,
    until_ci: Annotated[
        float | None,
        typer.Option(
            "--until-ci",
            min=0.005,
            max=0.5,
            help="Run until the 95% interval is this narrow on each side; it is approximate then.",
            show_default=False,
            rich_help_panel=options.EPISODES,
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            min=2,
            metavar="K",
            help="Evaluate the run's last K checkpoints: their mean, and the best one on fresh seeds.",
            show_default=False,
            rich_help_panel=options.EPISODES,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="STORE",
            help="Compare predicted with recorded actions of held-out episodes instead, as for policies without a "
            "simulator; by default those of the store of the training.",
            show_default=False,
            rich_help_panel=options.EPISODES,
        ),
    ] = None,
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    sweeps: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="NAME=VALUES",
            help="Success rate against latency; may be repeated: --sweep inference-steps=1,4,16 --sweep "
            "sampler=ddim,dpm.",
            show_default=False,
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    env: env_options.Env = None,
    env_args: env_options.EnvArgs = None,
    sources: env_options.Map = None,
    success_key: env_options.SuccessKey = None,
    score_key: env_options.ScoreKey = None,
    max_steps: env_options.MaxSteps = None,
    engine: options.Engine = "auto",
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="JSON report; by default in the run's eval/ folder.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    page: options.Page = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure the success rate of a policy, with its 95% interval.

    Episodes start from fixed seeds. Results do not depend on the number of workers; crashed workers are retried.
    A policy without a simulator is compared with recorded episodes, or runs in a Gymnasium environment (--env).
    """
    swept = parse_sweep(sweeps or [])
    paths = [*(checkpoints or []), *([policy] if policy else [])]
    _check_paths(paths, swept, last, data)
    environment = env_options.gymnasium_settings(env, env_args, sources, success_key, score_key, max_steps)
    count = episodes or (MAX_EPISODES if until_ci else DEFAULT_EPISODES)
    image = _image_beside(out, overwrite) if out and swept else None
    device = options.device_of_workers(device, cluster)
    if cluster is None and min(count, workers or default_workers()) > 1:
        preload_workers("ddp_cli.inference.agent", "ddp_cli.inference.onnx_policy")
    from ddp_cli.evaluation.report import write_report
    from ddp_cli.training.distributed import init_processes

    with init_processes() as processes, console.results_silenced(json), ExitStack() as reserved:
        if not processes.is_main:
            console.silence()
        processes.run_on_main(lambda: _check_one_process(processes, {"--cluster": cluster, "--until-ci": until_ci}))
        processes.run_on_main(lambda: _reserve_outputs(reserved, [out, image], page, overwrite))
        eval_options = EvalOptions(
            count, FIRST_SEED["eval"] if seed is None else seed, until_ci or 0.0, sampler, inference_steps, engine,
            reserved.enter_context(options.open_workers(workers, cluster)), device, environment,
        )  # fmt: skip
        folders = [] if last else [resolve_policy(path, runs, task) for path in paths or (None,)]
        if folders and (data or eval_options.lacks_environment(folders[0], processes)):
            _check_open_loop(
                {
                    "--env": env, "--sweep": swept, "--until-ci": until_ci, "--cluster": cluster, "--workers": workers,
                    "--seed": seed is not None, "a second policy": folders[1:],
                }
            )  # fmt: skip
            image = _image_beside(out, overwrite) if out else None
            report = evaluate_open_loop(eval_options.open(folders[0], processes), data, episodes, image)
        else:
            _warn_of_seeds(eval_options)
            if last:
                report = evaluate_last(paths[0] if paths else None, runs, task, last, eval_options, processes)
            elif swept:
                report = sweep(folders[0], eval_options, swept, image, processes)
            else:
                report = _evaluate(folders, eval_options, processes)
        if not processes.is_main:
            return
        if out:
            write_report(out, report)
            console.note(f"report: {out}")
        page_of_evaluation(report, page)
    if json:
        console.print_json(report)


def _check_one_process(processes: Processes, arguments: dict[str, object]) -> None:
    """DdpError if one of these arguments, which only a process that runs all episodes can follow, is given to several:
    a cluster divides the episodes itself, and each process would stop by the interval of its own share.
    """
    unused = [name for name, value in arguments.items() if value]
    if unused and processes.world_size > 1:
        raise DdpError(f"{unused[0]} does not go with torchrun, which divides the episodes.", "Run `ddp eval` alone.")


def _reserve_outputs(reserved: ExitStack, outputs: list[Path | None], page: Path | None, overwrite: bool) -> None:
    reserved.enter_context(reserve_page(page, overwrite))
    for path in outputs:
        if path:
            reserved.enter_context(options.reserve_output(path, overwrite))


def _warn_of_seeds(eval_options: EvalOptions) -> None:
    """Warn of seeds that have shaped a policy. Those of Gymnasium environments have no other purpose."""
    if eval_options.environment:
        return
    seeds = range(eval_options.seed, eval_options.seed + eval_options.episodes)
    for purpose, use in (
        ("collect", "are those of `ddp collect`: a policy that was trained on them knows these initial states"),
        ("training", "are those of `ddp train --eval-every`, by which the best checkpoint of a run may be chosen"),
    ):
        if purpose in purposes_of_seeds(seeds):
            console.warn(
                f"the seeds {seeds.start} to {seeds.stop - 1} {use}. Measure it on others: --seed "
                f"{FIRST_SEED['report']}."
            )


def _check_paths(paths: list[Path], swept: dict[str, list[str]], last: int | None, data: Path | None) -> None:
    """DdpError unless the number of policies fits the mode: one, two to compare, a sweep, or the last of a run."""
    if last and data:
        raise DdpError("--last does not go with --data.", "Compare the checkpoints with --data one by one.")
    settings = [path for path in paths if swept and "=" in str(path) and not path.exists()]
    if settings:
        raise DdpError(f"'{settings[0]}' is not a checkpoint.", f"Repeat the option: --sweep {settings[0]}.")
    if len(paths) > (1 if last or swept else 2) or (last and swept):
        raise DdpError(
            "these arguments do not go together.",
            "Give one checkpoint, two to compare, one with --sweep, or a run with --last.",
        )


def _check_open_loop(arguments: dict[str, object]) -> None:
    """DdpError if one of these arguments, which need episodes, is given for an evaluation on recorded ones."""
    unused = [name for name, value in arguments.items() if value]
    if unused:
        raise DdpError(
            f"{unused[0]} does not go with recorded episodes.",
            "Leave it out, or run episodes in a Gymnasium environment with --env and without --data.",
        )


def _image_beside(out: Path, overwrite: bool) -> Path:
    """Path of the picture of a report: beside it."""
    image = out.with_suffix(".png")
    if image == out:
        raise DdpError(f"--out '{out}': the report is JSON.", "Name a .json file; the picture is written beside it.")
    options.check_output(image, overwrite)
    return image


def _evaluate(folders: list[Path], eval_options: EvalOptions, processes: Processes) -> dict[str, Any]:
    from ddp_cli.task_difference import describe_difference

    sources = [eval_options.open(folder, processes) for folder in folders]  # all are checked before the first runs
    for source in sources[1:]:
        difference = describe_difference(sources[0].task, source.task, ignore=OBSERVED)
        if difference and not eval_options.environment:
            raise ConfigError(
                f"'{sources[0].folder}' and '{source.folder}' are policies of different tasks: {difference}. Their "
                "success rates cannot be compared.",
                "Evaluate them one by one.",
            )
    reports = [measure(source, eval_options, processes) for source in sources]
    return reports[0] if len(reports) == 1 else compare(*reports)
