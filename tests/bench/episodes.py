"""Episodes per hour of `ddp eval` against the plain loop: `python tests/bench/episodes.py CHECKPOINT [-n 50]`.

The plain loop is what people write: one process, robosuite's own step, both cameras drawn by `mujoco.Renderer`
at every step, the whole network under diffusers' scheduler, torch with its default threads. Both sides use the
checkpoint's render profile, sampler and number of steps, the same starts and the same noise, and each is a
command of its own whose whole time counts. Episodes that end differently are listed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ddp_cli.choices import FIRST_SEED
from ddp_cli.core.checkpoint import load_policy, resolve_checkpoint
from ddp_cli.core.diffusion import make_scheduler
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.evaluation.rollout import SUCCESS_HOLD_STEPS
from ddp_cli.inference.agent import history_to_batch
from ddp_cli.sim.simulator import Simulator


class PlainCameras:
    """The simulator's cameras through `mujoco.Renderer`, all at every step."""

    def __init__(self, sim: Simulator) -> None:
        self.sim, self.model, self.renderer = sim, None, None

    def observe(self) -> dict[str, Any]:
        import mujoco

        model, data = self.sim.model, self.sim.data
        if self.model is not model:  # Lift's reset loads another one
            if self.renderer:
                self.renderer.close()
            if self.sim.render_profile == "fast":
                model.vis.quality.offsamples = 0
            self.model, self.renderer = model, mujoco.Renderer(model, 84, 84)
            self.option = mujoco.MjvOption()
            self.option.geomgroup[0] = 0
        seen = {}
        for key, camera in self.sim.task.cameras.items():
            self.renderer.update_scene(data, camera, self.option)
            if self.sim.render_profile == "fast":
                self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
                self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            seen[key] = self.renderer.render()
        return seen | self.sim.low_dim(self.sim.task.vectors("image"))


@torch.no_grad()
def plain_chunk(policy: DiffusionPolicy, history: Sequence[Mapping[str, Any]], generator: torch.Generator) -> Any:
    """The published `predict_action`: the whole network and the scheduler's own step, again and again."""
    config = policy.config
    features = policy.encode_obs(history_to_batch(history, policy.device))
    scheduler = make_scheduler(config)
    x = torch.randn(1, config.trajectory_steps, config.action_dim, generator=generator)
    for k in scheduler.timesteps:
        out = policy.denoiser(x, k, features)
        x = scheduler.step(out, k, x, generator=generator).prev_sample
    actions = policy.normalizer.unnormalize("action", x)[0]
    start = config.n_obs_steps - 1
    return actions[start : start + config.n_action_steps].numpy()


def plain_loop(checkpoint: Path, seeds: Sequence[int], sampler: str | None, steps: int | None) -> list[dict[str, Any]]:
    """Episodes as `ddp eval` counts them, in the plain way."""
    policy, meta = load_policy(checkpoint, "cpu")
    policy.set_sampler(sampler, steps)
    sim = Simulator(policy.config.task, str(meta["render"]), policy.config.actions)
    cameras, generator, episodes = PlainCameras(sim), torch.Generator(), []
    for seed in seeds:
        sim.reset(seed)
        generator.manual_seed(seed)
        history = [cameras.observe()] * policy.config.n_obs_steps
        step = in_a_row = first = 0
        while step < sim.task.horizon and in_a_row < SUCCESS_HOLD_STEPS:
            for action in plain_chunk(policy, history, generator).clip(-1, 1):
                sim.env.step(action)
                sim.refresh_kinematics()
                success = sim.is_success()
                step += 1
                in_a_row = in_a_row + 1 if success else 0
                first = first or (step if success else 0)
                history = [*history[1:], cameras.observe()]
                if step == sim.task.horizon or in_a_row == SUCCESS_HOLD_STEPS:
                    break
        episodes.append({"seed": seed, "success": first > 0, "steps": first or step})
    return episodes


def timed(command: Sequence[str]) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-n", "--episodes", type=int, default=50)
    parser.add_argument("--sampler")
    parser.add_argument("--inference-steps", type=int)
    parser.add_argument("--plain", action="store_true", help="Only the plain loop; prints its episodes as JSON.")
    args = parser.parse_args()
    first = FIRST_SEED["eval"]
    if args.plain:
        folder = resolve_checkpoint(args.checkpoint, Path("runs"), None)
        seeds = range(first, first + args.episodes)
        print(json.dumps({"episodes": plain_loop(folder, seeds, args.sampler, args.inference_steps)}))
        return
    asked = [str(args.checkpoint), "-n", str(args.episodes)]
    asked += ["--sampler", args.sampler] if args.sampler else []
    asked += ["--inference-steps", str(args.inference_steps)] if args.inference_steps else []
    plain, plain_s = timed([sys.executable, __file__, "--plain", *asked])
    ddp = str(Path(sys.executable).with_name("ddp"))
    ours, ours_s = timed([ddp, "eval", "--json", *asked])
    for name, seconds, report in (("plain loop", plain_s, plain), ("ddp eval", ours_s, ours)):
        wins = sum(e["success"] for e in report["episodes"])
        hourly = 3600 * args.episodes / seconds
        print(f"{name:10} {seconds:7.1f} s, {hourly:6.0f} episodes/h, {wins} of {args.episodes} succeeded")
    print(f"{plain_s / ours_s:.2f} times as fast, {ours['sampler']} with {ours['inference_steps']} steps")
    pairs = list(zip(plain["episodes"], ours["episodes"], strict=True))
    other = [p["seed"] for p, o in pairs if p["success"] != o["success"]]
    exact = sum(p["success"] == o["success"] and p["steps"] == o["steps"] for p, o in pairs)
    print(f"{exact} of {len(pairs)} end in the same step; with another outcome: {other or 'none'}")


if __name__ == "__main__":
    main()
