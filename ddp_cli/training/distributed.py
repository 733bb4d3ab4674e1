"""Processes that train one policy together, or share the episodes of an evaluation: started by `torchrun`, or by
`ddp train` itself (cpu_workers.py). A single process does not communicate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ddp_cli.errors import ConfigError, DdpError

Value = TypeVar("Value")

TIMEOUT = timedelta(hours=12)  # the others wait while the main process converts, evaluates or saves


@dataclass(frozen=True)
class Processes:
    """The position of this process in the group, and communication with the others."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # number of processes on this machine

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def shard(self, size: int) -> slice:
        """The items of `range(size)` for this process. Shards are disjoint and differ in length by one at most."""
        return slice(self.rank * size // self.world_size, (self.rank + 1) * size // self.world_size)

    def run_on_main(self, fn: Callable[[], Value]) -> Value:
        """Call `fn` in the main process only, and return its result in all processes, which wait for it.

        A DdpError of `fn` is raised in all processes; only in the main one it has a message.
        """
        if self.world_size == 1:
            return fn()
        message: list[Any] = [None, ""]  # result, error
        error: DdpError | None = None
        if self.is_main:
            try:
                message = [fn(), ""]
            except DdpError as e:
                error, message = e, [None, str(e)]
        dist.broadcast_object_list(message, src=0)
        if message[1]:
            raise error or DdpError("")
        return message[0]

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Value | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process. Cheap enough for every step."""
        if self.world_size == 1:
            return flag
        count = torch.tensor([int(flag)])
        dist.all_reduce(count)
        return bool(count)

    def local_device(self, name: str) -> str:
        """The device for this process: with several processes, `cuda` and `auto` are its own GPU."""
        if self.world_size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            if self.local_rank >= torch.cuda.device_count():
                raise ConfigError(
                    f"no GPU for process {self.local_rank} of this machine, which has {torch.cuda.device_count()}.",
                    "Start as many processes as there are GPUs, or use --device cpu.",
                )
            return f"cuda:{self.local_rank}"
        return name


@contextmanager
def init_processes() -> Iterator[Processes]:
    """Connect the processes that torchrun started, by gloo and, for tensors on GPUs, NCCL."""
    count = _read_env("WORLD_SIZE", 1)
    if (
        count <= 1 or not {"RANK", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()
    ):  # some clusters set only some of them
        yield Processes()
        return
    processes = Processes(_read_env("RANK", 0), count, _read_env("LOCAL_RANK", 0), _read_env("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available() and processes.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(processes.local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    yield processes
    dist.barrier()  # a process that leaves early would close connections that others still use
    # Not after an error: it would wait for processes that wait for this one. torchrun terminates them.
    dist.destroy_process_group()


def _read_env(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise ConfigError(f"{name}={value!r} in the environment is not a number.", "Start with torchrun, or unset it.")
    return int(value)
