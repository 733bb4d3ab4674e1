"""A function mapped over many items by the processes of a Ray cluster, with results in the order of the items."""

from __future__ import annotations

import pickle
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from ddp_cli.cluster import worker
from ddp_cli.cluster.node import software
from ddp_cli.cluster.packaging import package
from ddp_cli.parallel import FailedItem

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_CRASHES = 2  # of the process of an item, or of its machine: an item is retried once
ITEMS_PER_WORKER = 2  # results that wait for an earlier one take memory
_END = object()


@dataclass(frozen=True)
class RayCluster:
    """Processes of the cluster to which this process is connected: one per CPU, or fewer."""

    workers: int

    def at_most(self, count: int) -> RayCluster:
        """The same cluster with `count` processes or fewer."""
        return RayCluster(min(self.workers, count))

    def map(
        self, make_function: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Generator[Result | FailedItem[Item], None, None]:
        """Yield `make_function()(item)` for every item, in order; `FailedItem(item)` if it crashed two processes.

        Items run one at a time in each process. An exception of the function is raised in its place. What is running
        when the generator is closed is cancelled.
        """
        calls = _Calls(worker.Work(uuid.uuid4().hex, package(make_function), software()))
        pending: deque[_Call] = deque()
        remaining = iter(items)
        try:
            while True:
                while calls.n_running < self.workers and len(pending) < ITEMS_PER_WORKER * self.workers:
                    item = next(remaining, _END)
                    if item is _END:
                        break
                    pending.append(calls.submit(item))
                if not pending:
                    return
                calls.update(wait=not pending[0].is_done)
                if pending[0].is_done:
                    yield pending.popleft().result()
        finally:
            calls.cancel()


class _Call:
    """The call of the function on one item."""

    def __init__(self, item: Any) -> None:
        self.item = item
        self.crashes = 0
        self.outcome: bytes | None = None

    @property
    def is_done(self) -> bool:
        return self.outcome is not None or self.crashes == MAX_CRASHES

    def result(self) -> Any:
        if self.outcome is None:
            return FailedItem(self.item)
        result, error = pickle.loads(self.outcome)  # noqa: S301 - sent by the workers of this command
        if error is not None:
            raise error
        return result


class _Calls:
    """The calls that are running."""

    def __init__(self, work: worker.Work) -> None:
        # Ray's own retries are off: they do not count those after a lack of memory.
        self._remote = ray.remote(num_cpus=1, max_retries=0)(worker.call)
        self._work = ray.put(work)  # a machine fetches it once
        self._running: dict[ray.ObjectRef[bytes], _Call] = {}

    @property
    def n_running(self) -> int:
        return len(self._running)

    def submit(self, item: Any) -> _Call:
        call = _Call(item)
        self._start(call)
        return call

    def _start(self, call: _Call) -> None:
        self._running[self._remote.remote(self._work, pickle.dumps(call.item, pickle.HIGHEST_PROTOCOL))] = call

    def update(self, wait: bool) -> None:
        """Take the outcome of a call that has ended, if there is one, or `wait` for it."""
        done, _ = ray.wait(list(self._running), timeout=None if wait else 0)
        for ref in done:
            call = self._running.pop(ref)
            try:
                call.outcome = ray.get(ref)
            except RayTaskError:  # an error of the worker itself: nothing crashed
                raise
            except RayError:
                call.crashes += 1
                if not call.is_done:
                    self._start(call)

    def cancel(self) -> None:
        """Stop the processes of all calls that are running."""
        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()
