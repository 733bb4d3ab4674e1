"""Training speed against plain code: `python tests/bench/training.py STORE [--preset paper laptop]`.

Measures the data loader alone [windows/s], the policy alone, on one repeated batch [s/step], and both together, for
the baseline (plain.py) and `ddp` in alternation. Each measurement runs in a new process with all threads; medians over
the rounds. With `--load`, `ddp eval` runs on the same cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from background_load import background_load
from plain import PlainDataset, PlainTrainer

from ddp_cli.core.windows import to_device
from ddp_cli.data.store import Store
from ddp_cli.memory import keep_freed_memory
from ddp_cli.presets import train_config
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.trainer import Trainer

N_WORKERS = 2  # of the baseline's DataLoader, which is measured without workers as well


def time_per_call(fn: Callable[[], Any], n_calls: int, n_warm_up: int, device: torch.device) -> float:
    """Mean time per call of `fn` [s]."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(n_warm_up):
        fn()
    synchronize()
    start = time.perf_counter()
    for _ in range(n_calls):
        fn()
    synchronize()
    return (time.perf_counter() - start) / n_calls


def plain_batches(config: TrainConfig, store: Store, n_workers: int) -> Iterator[dict[str, torch.Tensor]]:
    loader = torch.utils.data.DataLoader(
        PlainDataset(config, store), config.batch_size, shuffle=True, num_workers=n_workers, drop_last=True,
        persistent_workers=n_workers > 0, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    while True:
        yield from loader


def time_baseline(part: str, config: TrainConfig, store: Store, device: torch.device, n_steps: int) -> float:
    """Time per batch of the baseline [s]."""
    n_workers = 0 if part == "loader, no worker" else N_WORKERS
    batches = plain_batches(config, store, n_workers)
    if part.startswith("loader"):
        return time_per_call(lambda: next(batches), 20, 5, device)
    trainer = PlainTrainer(config, device)
    if part == "policy":
        batches = itertools.repeat(next(plain_batches(config, store, 0)))
    return time_per_call(lambda: trainer.step(next(batches)), n_steps, 2, device)


def time_ddp(part: str, config: TrainConfig, store: Store, device: torch.device, n_steps: int) -> float:
    """Time per batch of `ddp train` [s]."""
    keep_freed_memory()
    data = load_training_data(config, store, device, print)
    trainer = Trainer(config, data, device, total=100_000)
    if part.startswith("loader"):
        step_numbers = itertools.count()
        return time_per_call(lambda: to_device(trainer.loader.batch(next(step_numbers)), device), 200, 20, device)
    if part == "policy":
        batch = trainer.loader.batch(0)
        trainer.loader.batch = lambda _step: batch
    return time_per_call(trainer.step, n_steps, 2, device)


def measure(
    implementation: str, part: str, preset: str, store_path: Path, device: str, n_steps: int, queue: Any
) -> None:
    """Put the time per batch of `implementation` ("plain" or "ours") on `queue`."""
    store = Store(store_path)
    # The baseline has no auxiliary losses and no object pose: without them both do the same work.
    config = train_config(store.task.name, "image", preset, None, {"action_loss": 0.0, "object_loss": 0.0})
    time_batches = time_baseline if implementation == "plain" else time_ddp
    queue.put(time_batches(part, config, store, torch.device(device), n_steps))


def measure_in_new_process(*args: Any) -> float:
    """The result of `measure(*args)`."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(*args, queue))
    process.start()
    seconds = queue.get()
    process.join()
    return seconds


def compare(preset: str, part: str, args: argparse.Namespace) -> None:
    """Measure and print one row."""
    n_steps = args.steps or (100 if args.device == "cuda" else {"paper": 5, "laptop": 30}[preset])
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(args.rounds):
        for implementation, rounds in times.items():
            rounds.append(measure_in_new_process(implementation, part, preset, args.store, args.device, n_steps))
    plain_s, ddp_s = (statistics.median(rounds) for rounds in times.values())
    ratio = plain_s / ddp_s
    rates = (
        f"{64 / plain_s:.0f} and {64 / ddp_s:.0f} windows/s"
        if "loader" in part
        else f"{plain_s:.3f} and {ddp_s:.3f} s per step"
    )
    print(f"{preset}, {part}: {rates}, {ratio:.2f} times as fast", flush=True)
    row = {"preset": preset, "what": part, "plain_s": plain_s, "ours_s": ddp_s, "ratio": ratio, "rounds": times}
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--preset", nargs="+", default=["paper", "laptop"])
    parser.add_argument("--what", dest="parts", nargs="+", default=["loader, no worker", "loader", "policy", "both"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="timed steps per round (default: 100 on a GPU; on a CPU, 5 for paper and 30 for laptop)",
    )
    parser.add_argument("--load", action="store_true", help="measure beside `ddp eval` on all cores")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, medians of {args.rounds} rounds"
    )
    with background_load(args.load):
        for preset in args.preset:
            for part in args.parts:
                compare(preset, part, args)


if __name__ == "__main__":
    main()
