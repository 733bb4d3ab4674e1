"""`ddp rollout`: one episode, recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console, options
from ddp_cli.tasks import FIRST_SEED


def rollout(
    checkpoint: options.Checkpoint = None,
    video: Annotated[
        Path | None, typer.Option("--video", help="Write an mp4 of the cameras.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which start; the same as in `ddp eval`.")] = FIRST_SEED[
        "eval"
    ],
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Try the next starts until one succeeds.")] = 1,
    task: options.AnyTask = None,
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    device: options.Device = "auto",
    runs: options.Runs = options.RUNS,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Run a policy in the simulator and say how it went."""
    from dataclasses import asdict

    from ddp_cli.core.agent import load_agent
    from ddp_cli.core.checkpoint import load_meta, resolve_checkpoint
    from ddp_cli.core.run import choose_device
    from ddp_cli.sim.rollout import run_episode
    from ddp_cli.sim.simulator import Simulator
    from ddp_cli.sim.filming import record

    folder = resolve_checkpoint(checkpoint, runs, task)
    if video:
        options.check_output(video, overwrite)
    agent = load_agent(folder, str(choose_device(device)), sampler, inference_steps)
    sim = Simulator(agent.policy.config.task, str(load_meta(folder)["render"]), agent.actions)
    console.note(f"policy {folder}")
    results = []
    for start in range(seed, seed + attempts):
        result = record(sim, agent, start, video) if video else run_episode(sim, agent, start)
        results.append(result)
        if result.success:
            break
    sim.close()
    if json:
        console.print_json(
            {
                "checkpoint": str(folder),
                "video": str(video) if video else None,
                "episodes": [asdict(r) for r in results],
            }
        )
        return
    for r in results:
        outcome = "success" if r.success else "no success"
        console.result(f"start {r.seed}: {outcome} after {r.steps} steps, {r.chunk_ms:.0f} ms per action chunk")
    if video:
        console.result(f"video: {video}")
