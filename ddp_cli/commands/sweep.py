"""`ddp eval --sweep`: success rate against latency over samplers and numbers of denoising steps."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.commands.measurement import EvalOptions, measure, write_or_warn
from ddp_cli.deploy.policy_source import is_exported
from ddp_cli.errors import ConfigError, DdpError, UnknownNameError
from ddp_cli.evaluation.report import report_folder
from ddp_cli.seeds import unused_seed

if TYPE_CHECKING:
    from ddp_cli.training.distributed import Processes

SWEEPABLE = ("sampler", "inference-steps")
MAX_NAME = 100
EXAMPLE = "For example: --sweep inference-steps=1,4,16,100 --sweep sampler=ddim,dpm."


def parse_sweep(settings: list[str]) -> dict[str, list[str]]:
    """["sampler=ddim,dpm"] -> {"sampler": ["ddim", "dpm"]}; DdpError for what cannot be swept."""
    swept: dict[str, list[str]] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        name = name.replace("_", "-")
        if name not in SWEEPABLE:
            raise UnknownNameError("--sweep setting", name, SWEEPABLE, EXAMPLE)
        values = [value.strip() for value in text.split(",") if value.strip()]
        if not values:
            raise DdpError(f"--sweep '{setting}' has no values.", EXAMPLE)
        swept[name] = [*swept.get(name, []), *values]
    return swept


def sweep_options(checkpoint: Path, eval_options: EvalOptions, swept: dict[str, list[str]]) -> list[EvalOptions]:
    """The options of every combination; ConfigError or DdpError if one of them is not possible."""
    from ddp_cli.core.checkpoint import load_meta
    from ddp_cli.policy_config import PolicyConfig

    if is_exported(checkpoint):
        raise DdpError(f"'{checkpoint}' is an exported policy, whose sampler is fixed.", "Sweep its checkpoint.")
    for name, value in (("sampler", eval_options.sampler), ("inference-steps", eval_options.inference_steps)):
        if name in swept and value is not None:
            raise DdpError(f"--{name} {value} contradicts --sweep {name}=...", "Leave one of them out.")
    step_counts: list[int | None] = [eval_options.inference_steps]
    if "inference-steps" in swept:
        invalid = [value for value in swept["inference-steps"] if not value.isdecimal()]
        if invalid:
            raise DdpError(f"--sweep: inference-steps '{invalid[0]}' is not a whole number.", EXAMPLE)
        step_counts = list(dict.fromkeys(int(value) for value in swept["inference-steps"]))
    policy = PolicyConfig(**load_meta(checkpoint)["policy"])  # type: ignore[arg-type]
    combinations = []
    for sampler in dict.fromkeys(swept.get("sampler", [eval_options.sampler])):
        for count in step_counts:
            try:
                config = policy.with_sampler(sampler, count)
            except ConfigError as e:
                raise DdpError(
                    f"--sweep: {e.message}", e.hint if isinstance(e, UnknownNameError) else EXAMPLE
                ) from None
            combinations.append(
                replace(eval_options, sampler=config.sampler, inference_steps=config.num_inference_steps)
            )
    return combinations


def sweep(
    checkpoint: Path,
    eval_options: EvalOptions,
    swept: dict[str, list[str]],
    image: Path | None,
    processes: Processes,
) -> dict[str, Any]:
    """Evaluates every combination on the same seeds, prints a table and plots it.

    The plot (PNG) goes to `image`, or else to the run's eval/ folder, or the current folder for a checkpoint outside
    of a run.
    """
    from ddp_cli.training.plots import plot_sweep

    reports = [
        measure(combination.open(checkpoint, processes), combination, processes, quiet=True)
        for combination in sweep_options(checkpoint, eval_options, swept)
    ]
    if processes.is_main:
        header = ("sampler", "steps", "action chunk", "success rate", "", "95% interval")
        console.table(f"{reports[0]['task']} from {reports[0]['obs']}: {checkpoint}", list(map(_row, reports)), header)
        plot = image or _default_image(checkpoint, eval_options, reports)
        if write_or_warn(plot, lambda: plot_sweep(reports, plot)):
            console.note(f"plot: {plot}")
        used = range(eval_options.seed, eval_options.seed + eval_options.episodes)
        console.note(f"the best of several is partly luck: measure it again with --seed {unused_seed(used)}")
    return {"sweep": reports}


def _row(report: dict[str, Any]) -> tuple[str, ...]:
    low, high = report["interval_95"]
    return (
        report["sampler"], str(report["inference_steps"]), f"{report['chunk_ms']:.1f} ms",
        f"{report['success_rate']:.1%}", f"{report['successes']} of {len(report['episodes'])}",
        f"{low:.1%} to {high:.1%}",
    )  # fmt: skip


def _default_image(checkpoint: Path, eval_options: EvalOptions, reports: list[dict[str, Any]]) -> Path:
    values = "-".join(
        "+".join(dict.fromkeys(str(report[key]) for report in reports)) for key in ("sampler", "inference_steps")
    )
    if len(values) > MAX_NAME:  # file systems limit the length of names
        values = hashlib.sha256(values.encode()).hexdigest()[:8]
    image = f"sweep-{checkpoint.name}-{values}-{eval_options.seed}x{eval_options.episodes}.png"
    return (report_folder(checkpoint) or Path()) / image
