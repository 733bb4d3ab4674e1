"""A function mapped over many items by the processes of a Ray cluster, with results in the order of the items.

A process is an actor of Ray that takes one CPU. Processes are started as they are needed, and replaced when they die.
"""

from __future__ import annotations

import pickle
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from ddp_cli.cluster.node import software
from ddp_cli.cluster.packaging import package
from ddp_cli.cluster.worker import Work, Worker
from ddp_cli.errors import WorkerError, last_line
from ddp_cli.parallel import FailedItem

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_CRASHES = 2  # of the process of an item, or of its machine: an item is retried once
MAX_FAILED_STARTS = 3  # of processes, in a row
ITEMS_PER_WORKER = 2  # results that wait for an earlier one take memory
_END = object()


class RayCluster:
    """Processes of the cluster to which this process is connected, `workers` at most."""

    def __init__(self, workers: int, idle: list[Any] | None = None) -> None:
        self.workers = workers
        self._idle = [] if idle is None else idle  # processes of finished maps, which the next one goes on with

    def at_most(self, count: int) -> RayCluster:
        """The same cluster with `count` processes or fewer."""
        return RayCluster(min(self.workers, count), self._idle)

    def map(
        self, make_function: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Generator[Result | FailedItem[Item], None, None]:
        """Yield `make_function()(item)` for every item, in order; `FailedItem(item)` if it crashed two processes.

        An exception of the function is raised in its place. Processes that are busy when the generator is closed are
        stopped.
        """
        calls = _Calls(Work(uuid.uuid4().hex, package(make_function), software()), self._idle)
        pending: deque[_Call] = deque()
        remaining = iter(items)
        try:
            while True:
                while calls.n_unfinished < self.workers and len(pending) < ITEMS_PER_WORKER * self.workers:
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
            calls.stop()


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
    """The unfinished calls of a map: those that wait for a process, and those that run in one."""

    def __init__(self, work: Work, idle: list[Any]) -> None:
        self._work = ray.put(work)  # a machine fetches it once
        self._start = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD")(Worker)
        self._idle = idle
        self._starting: dict[ray.ObjectRef[Any], Any] = {}
        self._running: dict[ray.ObjectRef[Any], tuple[Any, _Call]] = {}
        self._waiting: deque[_Call] = deque()
        self._failed_starts = 0

    @property
    def n_unfinished(self) -> int:
        return len(self._waiting) + len(self._running)

    def submit(self, item: Any) -> _Call:
        call = _Call(item)
        self._waiting.append(call)
        self._dispatch()
        return call

    def update(self, wait: bool) -> None:
        """Note that a process has started or a call has ended, if one has, or `wait` for it."""
        refs = [*self._starting, *self._running]
        done, _ = ray.wait(refs, timeout=None if wait else 0) if refs else ([], [])
        for ref in done:
            if ref in self._starting:
                self._started(ref)
            else:
                self._ended(ref)
        self._dispatch()

    def stop(self) -> None:
        """Stop all processes but the idle ones."""
        for process in [*self._starting.values(), *(process for process, _ in self._running.values())]:
            ray.kill(process)

    def _dispatch(self) -> None:
        """Give calls to idle processes, and start as many as the other calls need."""
        while self._waiting and self._idle:
            process, call = self._idle.pop(), self._waiting.popleft()
            item = pickle.dumps(call.item, pickle.HIGHEST_PROTOCOL)
            self._running[process.call.remote(self._work, item)] = (process, call)
        for _ in range(len(self._waiting) - len(self._starting)):
            new: Any = self._start.remote()
            self._starting[new.ready.remote()] = new

    def _started(self, ref: ray.ObjectRef[Any]) -> None:
        process = self._starting.pop(ref)
        try:
            ray.get(ref)
        except RayError as e:
            self._failed_starts += 1
            if self._failed_starts == MAX_FAILED_STARTS:
                raise WorkerError(
                    f"processes cannot be started on the cluster: {last_line(e)}.", "Run `ray status`."
                ) from None
        else:
            self._failed_starts = 0
            self._idle.append(process)

    def _ended(self, ref: ray.ObjectRef[Any]) -> None:
        process, call = self._running.pop(ref)
        try:
            call.outcome = ray.get(ref)
        except RayTaskError:  # an error of the worker itself: nothing crashed
            raise
        except RayError:  # killed, out of memory, or the machine is lost or cannot be reached
            call.crashes += 1
            if not call.is_done:
                self._waiting.appendleft(call)
            for lost in [process, *self._idle]:  # idle processes may have died with it
                ray.kill(lost)
            self._idle.clear()
        else:
            self._idle.append(process)
