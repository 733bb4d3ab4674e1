"""Training on a CPU in several processes of one thread each, started by the main one.

The threads of one process wait for each other some thousand times in a training step, and beside other programs each
time may take until the scheduler's next slice. Processes wait for each other once a step, to add up their gradients.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

from ddp_cli import console
from ddp_cli.errors import DdpError, WorkerError
from ddp_cli.parallel import run_in_thread, start_process
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.distributed import TIMEOUT, Processes
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.run import Run, run_training

MIN_SAMPLES = 16
"""Samples of a batch that a process has at least: with fewer, what does not depend on the batch outweighs them."""

EXIT_SECONDS = 5.0  # within which a process that has finished or failed is gone
POLL_SECONDS = 0.02


def count_processes(config: TrainConfig, device: torch.device) -> int:
    """How many processes train on `device`: on a CPU as many as PyTorch would use threads, as the batch allows."""
    if device.type != "cpu" or not dist.is_gloo_available():
        return 1
    return max(1, min(torch.get_num_threads(), config.batch_size // (MIN_SAMPLES * config.accumulate)))


@contextmanager
def cpu_workers(
    config: TrainConfig, device: torch.device, processes: Processes, start: Callable[..., Run]
) -> Iterator[Processes]:
    """The processes that train `config` on `device`: those of torchrun if there are any, otherwise this one and, on a
    CPU, workers that it starts. They train the run of `start(processes=...)`, which must be picklable.

    WorkerError if a worker crashes.
    """
    count = 1 if processes.world_size > 1 else count_processes(config, device)
    if count == 1:
        yield processes
        return
    threads = torch.get_num_threads()
    main, *others = (Processes(rank, count, rank, count) for rank in range(count))
    workers: list[BaseProcess] = []
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="ddp-train-") as folder:
            rendezvous = Path(folder) / "rendezvous"
            workers += [start_process(_work, rendezvous, worker, start) for worker in others]
            _connect_to(workers, rendezvous, main)
        yield main
        dist.barrier()
        _wait_for_exit(workers)  # all is done: one that does not exit is killed below
    except RuntimeError as e:
        if isinstance(e, DdpError) or not _has_crashed(workers):
            raise
        raise _crash_error() from e
    finally:
        for worker in workers:
            worker.kill()
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)


def _connect_to(workers: list[BaseProcess], rendezvous: Path, main: Processes) -> None:
    """Connect the main process to its workers; WorkerError if one of them ends before."""
    # In a thread: init_process_group waits for all processes, also for one that has crashed, and ignores Ctrl-C.
    connection = run_in_thread(lambda: _connect(rendezvous, main))
    while not connection.done():
        if wait([worker.sentinel for worker in workers], POLL_SECONDS):
            raise _crash_error()
    connection.result()


def _connect(rendezvous: Path, processes: Processes) -> None:
    # Not by URL, in which torch does not find every path.
    store = dist.FileStore(str(rendezvous), processes.world_size)  # type: ignore[attr-defined]
    store.set_timeout(TIMEOUT)
    dist.init_process_group("gloo", store=store, timeout=TIMEOUT, rank=processes.rank, world_size=processes.world_size)
    dist.barrier()  # all are connected: the rendezvous is not needed any more


def _crash_error() -> WorkerError:
    return WorkerError(
        "a training process crashed (killed, or out of memory).",
        "--resume continues a run that has started; OMP_NUM_THREADS=1 trains in a single process.",
    )


def _work(rendezvous: Path, processes: Processes, start: Callable[..., Run]) -> None:
    """In a worker: train until the main process stops, which handles signals and reports errors."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    console.silence()
    torch.set_num_threads(1)
    try:
        _connect(rendezvous, processes)
        run_training(start(processes=processes), Callbacks())
        dist.barrier()
    except DdpError as e:
        if str(e):
            console.error(str(e))
        sys.exit(1)


def _wait_for_exit(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.join(EXIT_SECONDS / len(workers))


def _has_crashed(workers: list[BaseProcess]) -> bool:
    _wait_for_exit(workers)
    return any(worker.exitcode for worker in workers)
