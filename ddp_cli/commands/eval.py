"""`ddp eval`: how often a policy succeeds."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console, options
from ddp_cli.tasks import FIRST_SEED


def evaluate(
    checkpoint: options.Checkpoint = None,
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="How many starts.")] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, help="First start; counts upward.")] = FIRST_SEED["eval"],
    task: options.AnyTask = None,
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    engine: options.Engine = "auto",
    workers: options.Workers = None,
    device: options.Device = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file; eval/ in the run by default.", show_default=False)
    ] = None,
    runs: options.Runs = options.RUNS,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure the success rate over fixed starts, with its 95% interval."""
    from ddp_cli.config import PolicyConfig
    from ddp_cli.core.agent import choose_engine, load_agent
    from ddp_cli.core.checkpoint import load_meta, resolve_checkpoint
    from ddp_cli.core.distributed import processes
    from ddp_cli.core.run import choose_device
    from ddp_cli.parallel import default_workers
    from ddp_cli.sim.evaluation import Evaluation, write_report
    from ddp_cli.sim.evaluation import evaluate as run_evaluation

    with processes() as together:
        if not together.first:
            console.mute()
        folder = resolve_checkpoint(checkpoint, runs, task)
        if out:
            options.check_output(out, overwrite)
        meta = load_meta(folder)
        used = PolicyConfig(**meta["policy"]).with_sampler(sampler, inference_steps)  # type: ignore[arg-type]
        spec = used.task
        chosen = str(choose_device(together.device(device)))
        used_engine = choose_engine(used, chosen.partition(":")[0], engine)
        agent = functools.partial(load_agent, folder, chosen, sampler, inference_steps, used_engine)
        used_sampler, used_steps = used.sampler, used.num_inference_steps
        console.note(f"policy {folder}, {used_sampler} with {used_steps} steps, engine {used_engine}")
        started, wins, done = time.perf_counter(), 0, 0
        starts = range(seed, seed + episodes)[together.share(episodes)]
        with console.progress(f"eval {spec.name}") as update:

            def progress(success: bool) -> None:
                nonlocal wins, done
                wins, done = wins + success, done + 1
                update(done, len(starts), f"{wins} succeeded")

            count = min(len(starts), workers or max(1, default_workers() // together.local_count))
            render = str(meta["render"])
            mine = run_evaluation(agent, spec, render, starts, count, lambda r: progress(r.success)).episodes
        result = Evaluation([episode for part in together.gather(mine) for episode in part])
        if not together.first:
            return
    seconds = time.perf_counter() - started
    report = {
        "checkpoint": str(folder), "task": spec.name, "obs": used.obs, "step": meta.get("step"),
        "sampler": used_sampler, "inference_steps": used_steps, "engine": used_engine,
        "first_seed": seed, "seconds": seconds,
    }  # fmt: skip
    report |= result.to_json()
    if out is None and folder.parent.name == "checkpoints":
        out = folder.parents[1] / "eval" / f"{folder.name}-{used_sampler}{used_steps}-{seed}x{episodes}.json"
    if out:
        write_report(out, report)
    if json:
        console.print_json(report)
        return
    low, high = result.interval
    rows = [
        (
            "success",
            f"{result.success_rate:.1%}",
            f"{result.successes} of {episodes}, 95% interval {low:.1%} to {high:.1%}",
        ),
        ("held for 10 steps", f"{result.held_rate:.1%}", ""),
        ("steps to success", f"{result.mean_steps:.1f}", f"mean; {spec.horizon} at most"),
        ("action chunk", f"{result.chunk_ms:.0f} ms", f"median, {used_sampler} with {used_steps} steps"),
        (
            "episodes",
            f"{3600 * episodes / seconds:.0f}/h",
            f"starts {seed} to {seed + episodes - 1}, in {console.duration(seconds)}",
        ),
    ]
    console.table(f"{spec.name} from {used.obs}", rows)
    if out:
        console.note(f"written to {out}")
