"""`ddp eval --sweep`: success against latency over samplers and numbers of denoising steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.commands.measurement import EvalOptions, measure
from ddp_cli.deploy.policy_source import is_exported
from ddp_cli.errors import ConfigError, DdpError, close_match

if TYPE_CHECKING:
    from ddp_cli.training.distributed import Processes

SWEPT = ("sampler", "inference-steps")
EXAMPLE = "Write --sweep inference-steps=1,2,4,8,16,100 sampler=ddim,dpm."


def parse_sweep(arguments: list[Path], sweeps: list[str] | None) -> tuple[list[Path], dict[str, list[str]]]:
    """Checkpoints, and the values of every swept setting. What follows `--sweep NAME=VALUES` on the command line
    arrives among the arguments: of those, the ones that hold a `=` and are no path belong to the sweep.
    """
    parts = list(sweeps or [])
    checkpoints = []
    for path in arguments:
        if sweeps and "=" in str(path) and not path.exists():
            parts.append(str(path))
        else:
            checkpoints.append(path)
    found: dict[str, list[str]] = {}
    for part in parts:
        name, _, values = part.partition("=")
        name = name.replace("_", "-")
        if name not in SWEPT:
            raise DdpError(f"--sweep: '{name}' cannot be swept{close_match(name, SWEPT)}", EXAMPLE)
        given = [value.strip() for value in values.split(",") if value.strip()]
        if not given:
            raise DdpError(f"--sweep: '{part}' has no values.", EXAMPLE)
        found[name] = [*found.get(name, []), *given]
    return checkpoints, found


def settings(checkpoint: Path, asked: EvalOptions, swept: dict[str, list[str]]) -> list[EvalOptions]:
    """What to measure, every sampler with every number of steps; ConfigError if one of them cannot be."""
    from ddp_cli.config import PolicyConfig
    from ddp_cli.core.checkpoint import load_meta

    if is_exported(checkpoint):
        raise DdpError(f"'{checkpoint}' is an exported policy, whose sampler is decided.", "Sweep its checkpoint.")
    for name, given in (("sampler", asked.sampler), ("inference-steps", asked.inference_steps)):
        if name in swept and given is not None:
            raise DdpError(f"--{name} {given} contradicts --sweep {name}=...", "Leave one of them out.")
    steps: list[int | None] = [asked.inference_steps]
    if "inference-steps" in swept:
        wrong = [value for value in swept["inference-steps"] if not value.isdecimal()]
        if wrong:
            raise DdpError(f"--sweep: inference-steps '{wrong[0]}' is not a whole number.", EXAMPLE)
        steps = list(dict.fromkeys(int(value) for value in swept["inference-steps"]))
    policy = PolicyConfig(**load_meta(checkpoint)["policy"])  # type: ignore[arg-type]
    combined = []
    for sampler in dict.fromkeys(swept.get("sampler", [asked.sampler])):
        for count in steps:
            try:
                used = policy.with_sampler(sampler, count)
            except ConfigError as e:
                raise DdpError(f"--sweep: {e.message}", EXAMPLE) from None
            combined.append(replace(asked, sampler=used.sampler, inference_steps=used.num_inference_steps))
    return combined


def sweep(
    checkpoint: Path, asked: EvalOptions, swept: dict[str, list[str]], picture: Path | None, together: Processes
) -> dict[str, Any]:
    """Measures every setting over the same starts, shows a table, and draws it (PNG, in the run's eval/, or here
    for a checkpoint of no run, unless `picture` says where).
    """
    from ddp_cli.training.plots import plot_sweep

    reports = [
        measure(one.subject(checkpoint, together), one, together, quiet=True)
        for one in settings(checkpoint, asked, swept)
    ]
    if together.first:
        rows = []
        for r in reports:
            low, high = r["interval_95"]
            count = len(r["episodes"])
            rows.append(
                (r["sampler"], str(r["inference_steps"]), f"{r['chunk_ms']:.1f} ms", f"{r['success_rate']:.1%}",
                 f"{r['successes']} of {count}", f"{low:.1%} to {high:.1%}")
            )  # fmt: skip
        header = ("sampler", "steps", "action chunk", "success", "", "95% interval")
        console.table(f"{reports[0]['task']} from {reports[0]['obs']}: {checkpoint}", rows, header)
        if picture is None:
            what = "-".join(
                "+".join(dict.fromkeys(str(r[key]) for r in reports)) for key in ("sampler", "inference_steps")
            )
            picture = Path(f"sweep-{checkpoint.name}-{what}-{asked.seed}x{asked.episodes}.png")
            if checkpoint.parent.name == "checkpoints":
                picture = checkpoint.parents[1] / "eval" / picture
        plot_sweep(reports, picture)
        console.note(f"drawn to {picture}")
    return {"sweep": reports}
