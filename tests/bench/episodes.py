"""Episodes per hour of `ddp eval` against a plain loop: `python tests/bench/episodes.py CHECKPOINT [-n 50]`.

The plain loop is a straightforward implementation: one process, robosuite's own step, both cameras rendered by
`mujoco.Renderer` at every step, the whole network under diffusers' scheduler, and torch with its default number of
threads. Both use the checkpoint's render profile, sampler and number of denoising steps, the same seeds and the same
noise. Each runs as a separate command and is timed including startup. Seeds with different outcomes are listed.
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

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.core.checkpoint_lookup import resolve_checkpoint
from ddp_cli.core.diffusion import make_scheduler
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.inference.agent import history_to_batch
from ddp_cli.seeds import FIRST_SEED
from ddp_cli.sim.simulator import SUCCESS_HOLD_STEPS, Simulator


class PlainCameras:
    """Renders the simulator's cameras with `mujoco.Renderer`."""

    def __init__(self, sim: Simulator) -> None:
        self.sim, self.model, self.renderer = sim, None, None

    def observe(self) -> dict[str, Any]:
        import mujoco

        model, data = self.sim.model, self.sim.data
        if self.model is not model:  # resetting Lift replaces the model
            if self.renderer:
                self.renderer.close()
            if self.sim.render_profile == "fast":
                model.vis.quality.offsamples = 0
            self.model, self.renderer = model, mujoco.Renderer(model, 84, 84)
            self.option = mujoco.MjvOption()
            self.option.geomgroup[0] = 0
        images = {}
        for key, camera in self.sim.task.robosuite.cameras.items():
            self.renderer.update_scene(data, camera, self.option)
            if self.sim.render_profile == "fast":
                self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
                self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            images[key] = self.renderer.render()
        return images | self.sim.low_dim(self.sim.task.vectors("image"))


@torch.no_grad()
def plain_chunk(policy: DiffusionPolicy, history: Sequence[Mapping[str, Any]], generator: torch.Generator) -> Any:
    """The action chunk (Ta, Da), as in the published `predict_action`: network, then scheduler step."""
    config = policy.config
    features = policy.encode_obs(history_to_batch(history, policy.device))
    scheduler = make_scheduler(config)
    x = torch.randn(1, config.trajectory_steps, config.action_dim, generator=generator)
    for k in scheduler.timesteps:
        prediction = policy.denoiser(x, k, features)
        x = scheduler.step(prediction, k, x, generator=generator).prev_sample
    actions = policy.normalizer.unnormalize("action", x)[0]
    start = config.n_obs_steps - 1
    return actions[start : start + config.n_action_steps].numpy()


def run_plain_loop(
    checkpoint: Path, seeds: Sequence[int], sampler: str | None, num_inference_steps: int | None
) -> list[dict[str, Any]]:
    """Results of the plain loop, with success and steps defined as in `ddp eval`."""
    policy, meta = load_policy(checkpoint, "cpu")
    policy.set_sampler(sampler, num_inference_steps)
    sim = Simulator(policy.config.task, str(meta["render"]), policy.config.actions)
    cameras, generator, episodes = PlainCameras(sim), torch.Generator(), []
    for seed in seeds:
        sim.reset(seed)
        generator.manual_seed(seed)
        history = [cameras.observe()] * policy.config.n_obs_steps
        step = consecutive_successes = first_success = 0
        while step < sim.task.horizon and consecutive_successes < SUCCESS_HOLD_STEPS:
            for action in plain_chunk(policy, history, generator).clip(-1, 1):
                sim.env.step(action)
                sim.refresh_kinematics()
                success = sim.is_success()
                step += 1
                consecutive_successes = consecutive_successes + 1 if success else 0
                first_success = first_success or (step if success else 0)
                history = [*history[1:], cameras.observe()]
                if step == sim.task.horizon or consecutive_successes == SUCCESS_HOLD_STEPS:
                    break
        episodes.append({"seed": seed, "success": first_success > 0, "steps": first_success or step})
    return episodes


def run_timed(command: Sequence[str]) -> tuple[dict[str, Any], float]:
    """The JSON output of `command`, and its run time [s]."""
    start = time.perf_counter()
    stdout = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(stdout), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-n", "--episodes", type=int, default=50)
    parser.add_argument("--sampler")
    parser.add_argument("--inference-steps", type=int)
    parser.add_argument("--plain", action="store_true", help="Run only the plain loop and print its episodes as JSON.")
    args = parser.parse_args()
    if args.plain:
        checkpoint = resolve_checkpoint(args.checkpoint, Path("runs"), None)
        seeds = range(FIRST_SEED["eval"], FIRST_SEED["eval"] + args.episodes)
        print(json.dumps({"episodes": run_plain_loop(checkpoint, seeds, args.sampler, args.inference_steps)}))
        return
    options = [str(args.checkpoint), "-n", str(args.episodes)]
    options += ["--sampler", args.sampler] if args.sampler else []
    options += ["--inference-steps", str(args.inference_steps)] if args.inference_steps else []
    plain, plain_s = run_timed([sys.executable, __file__, "--plain", *options])
    ddp_command = str(Path(sys.executable).with_name("ddp"))
    ddp, ddp_s = run_timed([ddp_command, "eval", "--json", *options])
    for name, seconds, report in (("plain loop", plain_s, plain), ("ddp eval", ddp_s, ddp)):
        n_successes = sum(e["success"] for e in report["episodes"])
        episodes_per_hour = 3600 * args.episodes / seconds
        print(
            f"{name:10} {seconds:7.1f} s, {episodes_per_hour:6.0f} episodes/h, "
            f"{n_successes} of {args.episodes} succeeded"
        )
    print(f"{plain_s / ddp_s:.2f} times as fast, {ddp['sampler']} with {ddp['inference_steps']} steps")
    pairs = list(zip(plain["episodes"], ddp["episodes"], strict=True))
    differing_seeds = [a["seed"] for a, b in pairs if a["success"] != b["success"]]
    n_equal = sum(a["success"] == b["success"] and a["steps"] == b["steps"] for a, b in pairs)
    print(f"{n_equal} of {len(pairs)} end at the same step; seeds with different outcomes: {differing_seeds or 'none'}")


if __name__ == "__main__":
    main()
