"""Training speed against the plain code: `python tests/bench/training.py STORE [--preset paper laptop]`.

Windows/s of the loaders alone, steps/s of the policies alone (one batch, again and again) and of both
together, baseline (plain.py) and ours by turns, each in a process of its own, medians over the rounds.
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
from plain import PlainDataset, PlainTrainer

from ddp_cli.config import TrainConfig
from ddp_cli.core.windows import to_device
from ddp_cli.data.store import Store
from ddp_cli.presets import train_config
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.trainer import Trainer, keep_freed_memory

WORKERS = 2  # of the baseline's DataLoader, besides none


def timed(step: Callable[[], Any], count: int, warm_up: int, device: torch.device) -> float:
    """Seconds per call."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(warm_up):
        step()
    wait()
    started = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return (time.perf_counter() - started) / count


def plain_batches(config: TrainConfig, store: Store, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    loader = torch.utils.data.DataLoader(
        PlainDataset(config, store), config.batch_size, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    while True:
        yield from loader


def plain(what: str, config: TrainConfig, store: Store, device: torch.device, steps: int) -> float:
    """Seconds per batch of the baseline."""
    workers = 0 if what == "loader, no worker" else WORKERS
    batches = plain_batches(config, store, workers)
    if what.startswith("loader"):
        return timed(lambda: next(batches), 20, 5, device)
    trainer = PlainTrainer(config, device)
    if what == "policy":
        batches = itertools.repeat(next(plain_batches(config, store, 0)))
    return timed(lambda: trainer.step(next(batches)), steps, 2, device)


def ours(what: str, config: TrainConfig, store: Store, device: torch.device, steps: int) -> float:
    """Seconds per batch of `ddp train`."""
    keep_freed_memory()
    data = load_training_data(config, store, device, print)
    trainer = Trainer(config, data, device, total=100_000)
    if what.startswith("loader"):
        count = itertools.count()
        return timed(lambda: to_device(trainer.loader.batch(next(count)), device), 200, 20, device)
    if what == "policy":
        batch = trainer.loader.batch(0)
        trainer.loader.batch = lambda _step: batch
    return timed(trainer.step, steps, 2, device)


def measure(which: str, what: str, preset: str, path: Path, device: str, steps: int, queue: Any) -> None:
    store = Store(path)
    # the auxiliary losses and the object's pose are ours alone: left out, both do the same work
    config = train_config(store.task.name, "image", preset, None, {"action_loss": 0.0, "object_loss": 0.0})
    function = plain if which == "plain" else ours
    queue.put(function(what, config, store, torch.device(device), steps))


def apart(*args: Any) -> float:
    """`measure` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(*args, queue))
    process.start()
    seconds = queue.get()
    process.join()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--preset", nargs="+", default=["paper", "laptop"])
    parser.add_argument("--what", nargs="+", default=["loader, no worker", "loader", "policy", "both"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="timed in a round; 5 of paper, 30 of laptop on a CPU")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, medians of {args.rounds} rounds"
    )
    for preset in args.preset:
        steps = args.steps or (100 if args.device == "cuda" else {"paper": 5, "laptop": 30}[preset])
        for what in args.what:
            seconds: dict[str, list[float]] = {"plain": [], "ours": []}
            for _ in range(args.rounds):
                for which, found in seconds.items():
                    found.append(apart(which, what, preset, args.store, args.device, steps))
            a, b = (statistics.median(found) for found in seconds.values())
            row = {"preset": preset, "what": what, "plain_s": a, "ours_s": b, "ratio": a / b, "rounds": seconds}
            rate = f"{64 / a:.0f} and {64 / b:.0f} windows/s" if "loader" in what else f"{a:.3f} and {b:.3f} s a step"
            print(f"{preset}, {what}: {rate}, {a / b:.2f} times as fast", flush=True)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
