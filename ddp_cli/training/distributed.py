"""Several processes that train one policy, or share the starts of one evaluation; started by `torchrun`.

Without torchrun there is one process, and everything here is the identity.
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

PATIENCE = timedelta(hours=12)  # the others wait while the first process converts, evaluates, or saves


@dataclass(frozen=True)
class Processes:
    """Who this process is among those that work together."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1  # on this machine

    @property
    def first(self) -> bool:
        """The one that writes and prints."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """The part of `size` items that is this process's; the parts differ by one at most, none is in two."""
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the first process; the others wait for it and do not call it. Its error ends
        all of them, and is told by the first.
        """
        if self.count == 1:
            return make()
        box: list[Any] = [None, ""]
        failure: DdpError | None = None
        if self.first:
            try:
                box = [make(), ""]
            except DdpError as e:
                failure, box = e, [None, str(e)]
        dist.broadcast_object_list(box, src=0)
        if box[1]:
            raise failure or DdpError("")
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        values: list[Value | None] = [None] * self.count
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def any(self, yes: bool) -> bool:
        """Whether any process says yes. Cheap enough for every step."""
        if self.count == 1:
            return yes
        votes = torch.tensor([int(yes)])
        dist.all_reduce(votes)
        return bool(votes)

    def device(self, name: str) -> str:
        """`cuda` and `auto` mean this process's own GPU."""
        if self.count > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            if self.local_rank >= torch.cuda.device_count():
                raise ConfigError(
                    f"process {self.local_rank} of this machine has no GPU, there are {torch.cuda.device_count()}.",
                    "Start as many processes as there are GPUs, or use --device cpu.",
                )
            return f"cuda:{self.local_rank}"
        return name


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes that torchrun started, connected by gloo and, for tensors on GPUs, NCCL."""
    count = _number("WORLD_SIZE", 1)
    if count <= 1 or not {"RANK", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():  # some clusters set a part
        yield Processes()
        return
    here = Processes(_number("RANK", 0), count, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available() and here.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(here.local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield here
    dist.barrier()  # who leaves first would pull the connections from under the others' threads
    # Not after an error: it would wait for processes that wait for this one. torchrun ends them.
    dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise ConfigError(f"{name}={value!r} in the environment is not a number.", "Start with torchrun, or unset it.")
    return int(value)
