"""Checks an exported folder on the computer of a robot: its files, the latency of a chunk, and a control loop with
random observations. Requires numpy and onnxruntime only; `ddp export` copies this file beside runtime.py.

    python policy/device_check.py --seconds 60
"""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__ == "ddp_cli.deploy":
    from ddp_cli.deploy.runtime import PROVIDERS, SPEC_FILE, Policy, PolicyError
    from ddp_cli.deploy.streaming import ActionStream, StreamError
else:  # run as a script: the folder of this file is on the path
    try:
        from runtime import PROVIDERS, SPEC_FILE, Policy, PolicyError
        from streaming import ActionStream, StreamError
    except ModuleNotFoundError as e:
        sys.exit(
            f"error: no module '{e.name}'. Leave this file in its exported folder, and install numpy and onnxruntime."
        )

TIMED_CHUNKS = 40  # after one that warms up
ADVICE = (
    "Export the policy with fewer denoising steps (`ddp export CHECKPOINT --sampler ddim --inference-steps 4`), or try "
    "more --threads."
)


def seconds(text: str) -> float:
    """A duration [s] on the command line; ValueError if it is none."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def main() -> int:
    """The command line; returns 1 if a check failed."""
    parser = argparse.ArgumentParser(description="Check an exported policy on this computer.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(__file__).parent, help="default: that of this file"
    )
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime; 1 by default")
    parser.add_argument("--provider", choices=sorted(PROVIDERS), default="cpu", help="of ONNX Runtime; cpu by default")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="of the control loop; 10 by default")
    try:
        check_device(parser.parse_args())
    except (PolicyError, StreamError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def check_device(arguments: argparse.Namespace) -> None:
    """Print the results. PolicyError for a damaged or missing file, and for a policy that cannot be run here."""
    start = time.perf_counter()
    policy = Policy.load(arguments.folder, arguments.threads, arguments.provider)
    load_time = time.perf_counter() - start
    print(f"files          {check_files(policy)} files are those that were exported")
    print(f"computer       {platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"start          {load_time:.2f} s to load the policy")
    p50, p95 = measure_latency(policy)
    print(f"chunk          {p50:.1f} ms, p95 {p95:.1f} ms, threads {arguments.threads}, provider {arguments.provider}")
    late = run_control_loop(policy, arguments.seconds)
    if peak := peak_memory_mb():
        print(f"memory         {peak:.0f} MB at most")
    if late:
        print(f"Chunks were late. {ADVICE}")


def check_files(policy: Policy) -> int:
    """Number of files whose hash is that in policy.json; PolicyError names the first that is missing or differs."""
    hashes = policy.spec.get("sha256", {})
    for name, expected in hashes.items():
        path = policy.folder / name
        if not path.is_file():
            raise PolicyError(f"'{path}' is missing. Copy the whole folder again.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise PolicyError(f"'{path}' is damaged: its hash differs from the one in {SPEC_FILE}. Copy it again.")
    return len(hashes)


def random_observation(policy: Policy, generator: np.random.Generator) -> dict[str, Any]:
    """A random observation of one step {key: array}."""
    return {
        key: generator.integers(0, 256, obs["shape"], np.uint8)
        if obs["dtype"] == "uint8"
        else generator.standard_normal(obs["shape"], np.float32)
        for key, obs in policy.obs.items()
    }


def measure_latency(policy: Policy) -> tuple[float, float]:
    """Median and 95th percentile of the latency of a chunk [ms]."""
    generator = np.random.default_rng(0)
    step, latencies = random_observation(policy, generator), []
    obs = {key: np.stack([value] * policy.n_obs_steps) for key, value in step.items()}
    noise = policy.sample_noise(generator)
    for _ in range(TIMED_CHUNKS + 1):
        start = time.perf_counter()
        policy.predict(obs, noise)
        latencies.append(1e3 * (time.perf_counter() - start))
    return float(np.percentile(latencies[1:], 50)), float(np.percentile(latencies[1:], 95))


def run_control_loop(policy: Policy, duration: float) -> int:
    """Run the stream of the policy at the control rate with random observations, and print how it kept up. Returns the
    number of control steps without an action.
    """
    hz = policy.spec["control_hz"]
    generator, steps = np.random.default_rng(0), max(1, round(duration * hz))
    overruns = 0
    with ActionStream.from_policy(policy, waits=True, start=policy.limits.neutral_action()) as stream:
        stream.observe(random_observation(policy, generator))
        if chunk := stream.request():
            chunk.result()
        begin = time.monotonic()
        for i in range(steps):
            stream.observe(random_observation(policy, generator))
            stream.action()
            remaining = begin + (i + 1) / hz - time.monotonic()
            overruns += remaining < 0
            time.sleep(max(0.0, remaining))
        stats = stream.stats()
    print(
        f"control loop   {steps} steps at {hz:g} Hz, {stats.late_ticks} without an action, {overruns} ended too late\n"
        f"               {stats.chunks} chunks, {stats.p50_ms:.1f} ms, p95 {stats.p95_ms:.1f} ms, budget "
        f"{stats.budget_ms:.0f} ms"
    )
    return stats.late_ticks


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process [MB]; None where it is not known."""
    if not sys.platform.startswith("linux"):
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    sys.exit(main())
