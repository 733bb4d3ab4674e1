"""Training step and action chunk of LeRobot's diffusion policy and of the laptop preset, on Push-T from images.

    python tests/bench/lerobot_policy.py STORE --lerobot VENV/bin/python

STORE is Push-T with images of 96x96; VENV an environment with LeRobot and diffusers. LeRobot's policy has its default
settings, a batch size of 64 and random weights and inputs; the batch is in memory. `ddp train` runs as a command, data
loading included. Both have all cores; by turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from background_load import N_CORES
from loaded_training import steps_per_s

LEROBOT = """
import json, sys, time, torch
from importlib.metadata import version
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

n_steps, n_chunks = map(int, sys.argv[1:])
config = DiffusionConfig(
    input_features={
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
    },
    output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
    device="cpu",
    pretrained_backbone_weights=None,  # they would have to be downloaded
)
policy = DiffusionPolicy(config)
optimizer = torch.optim.Adam(policy.get_optim_params(), lr=config.optimizer_lr)

def batch(size):
    obs = {"observation.image": torch.rand(size, 2, 3, 96, 96), "observation.state": torch.rand(size, 2, 2)}
    action = torch.rand(size, config.horizon, 2)
    return obs, {**obs, "action": action, "action_is_pad": torch.zeros(size, config.horizon, dtype=torch.bool)}

def seconds(fn, n):
    fn()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return times

def step():
    loss, _ = policy(samples)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
    optimizer.step()
    optimizer.zero_grad()

_, samples = batch(64)
policy.train()
steps = seconds(step, n_steps)
policy.eval()
obs, _ = batch(1)
chunks = seconds(lambda: policy.predict_action_chunk(obs), n_chunks)
print(json.dumps({"version": version("lerobot"), "torch": torch.__version__,
    "parameters": sum(p.numel() for p in policy.parameters()), "step_s": steps, "chunk_s": chunks}))
"""


def measure_lerobot(python: Path, n_steps: int, n_chunks: int) -> dict[str, object]:
    """Seconds of each training step of 64 samples and of each chunk by DDPM in 100 steps."""
    command = [str(python), "-c", LEROBOT, str(n_steps), str(n_chunks)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(N_CORES)}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure_ddp(store: Path, n_steps: int, n_chunks: int) -> dict[str, object]:
    """Seconds of a training step of 128 samples, the mean of a run, and of each chunk by DDPM in 100 steps."""
    from ddp_cli.core.checkpoint import load_policy
    from ddp_cli.core.checkpoint_lookup import resolve_checkpoint
    from ddp_cli.inference.engine import make_predict_fn

    with tempfile.TemporaryDirectory() as runs:
        rate = steps_per_s([sys.executable, "-m", "ddp_cli"], store, n_steps, runs, "--set", "crop_shape=[84,84]")
        policy, _ = load_policy(resolve_checkpoint(None, Path(runs)))
    policy.set_sampler("ddpm", 100)  # as LeRobot's
    torch.set_num_threads(N_CORES)
    predict = make_predict_fn(policy, "onnx")
    obs = {key: torch.zeros(1, 2, width) for key, width in policy.config.low_dim.items()}
    for key, camera in policy.config.cameras.items():
        shape = (1, 2, camera.channels, camera.height, camera.width)
        obs[key] = torch.randint(0, 256, shape, dtype=torch.uint8)
    chunks = []
    for _ in range(n_chunks + 1):
        start = time.perf_counter()
        predict(obs, torch.Generator().manual_seed(0))
        chunks.append(time.perf_counter() - start)
    parameters = sum(p.numel() for p in policy.parameters())
    return {"parameters": parameters, "step_s": [1.0 / rate], "chunk_s": chunks[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--lerobot", type=Path, required=True, help="Python of an environment with LeRobot")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    results: dict[str, list[dict[str, object]]] = {"lerobot": [], "ddp": []}
    for _ in range(args.rounds):
        results["lerobot"].append(measure_lerobot(args.lerobot, 3, 3))
        results["ddp"].append(measure_ddp(args.store, 200, 50))
        print(json.dumps({name: rounds[-1] for name, rounds in results.items()}), flush=True)
    for name, rounds in results.items():
        step, chunk = (statistics.median(t for r in rounds for t in r[what]) for what in ("step_s", "chunk_s"))
        print(f"{name}: {step:.3f} s per step, {chunk * 1000.0:.1f} ms per chunk, medians of {args.rounds} rounds")


if __name__ == "__main__":
    main()
