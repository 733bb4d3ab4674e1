"""One function over many items in several processes, results in the order of the items."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

from ddp_cli.errors import WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")


_make: Callable[[], Callable[[Any], Any]] | None = None
_function: Callable[[Any], Any] | None = None


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin(function: Callable[[], Result]) -> Future[Result]:
    """Calls `function` in a thread that nobody waits for where the process ends before it."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as e:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(e)

    threading.Thread(target=call, daemon=True).start()
    return future


def prepare(*modules: str) -> None:
    """Begins to import `modules` in a process of its own, from which workers are then forked: they start with what
    takes seconds to load, and it is loaded while this process goes on. Name nothing that holds threads or devices.
    """
    if _can_fork():
        forkserver.set_forkserver_preload([*modules])
        with _interrupts_held():
            forkserver.ensure_running()


def _can_fork() -> bool:
    return sys.platform == "linux"  # on macOS, system libraries do not survive a fork


def _context() -> BaseContext:
    return get_context("forkserver" if _can_fork() else "spawn")


class FailedItem(Generic[Item]):
    """Stands for the result of an item under which processes died, again and again."""

    def __init__(self, item: Item) -> None:
        self.item = item


def ordered_map(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yields `make()(item)` for every item, in order; `items` may be endless.

    `make` runs once in each process (build a simulator there) and must be picklable; with one worker
    everything runs in this process. Few items are under way at a time, so memory does not grow with
    their number. Close the generator (contextlib.closing) to stop the processes at once. Raises WorkerError
    when a process dies.
    """
    with closing(fault_tolerant_map(make, items, workers, patience=0)) as results:
        for result in results:
            if isinstance(result, FailedItem):
                raise WorkerError(
                    "a worker process died (killed, or out of memory).", "Run again with fewer --workers."
                )
            yield result


def fault_tolerant_map(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int, patience: int = 2
) -> Generator[Result | FailedItem[Item], None, None]:
    """`ordered_map` that outlives its processes: when one dies all are started anew, and what was under way is
    done again; after a second death the item whose turn it is goes alone, so that no other one can be the cause
    of a third: then it is given up, and `FailedItem(item)` stands for its result.
    """
    if workers <= 1:
        function = make()
        yield from (function(item) for item in items)
        return
    pool = _Pool(make, workers)
    waiting: deque[Item] = deque()
    source, deaths = iter(items), 0
    try:
        while True:
            waiting.extend(itertools.islice(source, workers + 2 - len(waiting)))
            if not waiting:
                pool.close()
                return
            result: Result | FailedItem[Item]
            try:
                result = pool.first_of(waiting, alone=deaths >= 2)
            except BrokenProcessPool:
                deaths += 1
                pool.stop()
                pool = _Pool(make, workers)
                if deaths <= patience:
                    continue
                result = FailedItem(waiting[0])
            waiting.popleft()
            deaths = 0
            yield result
    finally:
        pool.stop()


class _Pool:
    """Processes, and what they are doing: results are asked for in the order of the items."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], workers: int) -> None:
        self._pool = ProcessPoolExecutor(workers, _context(), initializer=_start, initargs=(make,))
        self._futures: deque[Future[Any]] = deque()

    def first_of(self, items: Sequence[Any], alone: bool) -> Any:
        """The result of the first of `items`; meanwhile the others are worked on, unless it goes alone."""
        for item in itertools.islice(items, len(self._futures), 1 if alone else None):
            try:
                with _interrupts_held():
                    self._futures.append(self._pool.submit(_call, item))
            except (EOFError, ConnectionError) as e:  # the process that they are forked from has died
                raise BrokenProcessPool(str(e)) from e
        result = self._futures[0].result()
        self._futures.popleft()
        return result

    def close(self) -> None:
        """Waits for processes that have nothing left to do."""
        self._pool.shutdown(wait=True)

    def stop(self) -> None:
        """Ends the processes at once: nobody waits for what is still under way."""
        for process in list((self._pool._processes or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside never see Ctrl-C: it is the parent's to answer, and they would each print
    a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _make  # noqa: PLW0603 - set once per process
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa draws in the thread that asks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _make = make


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # nobody is left to want a result


def _call(item: Any) -> Any:
    # Made here and not in _start: an exception there would break the pool and hide its reason.
    global _function  # noqa: PLW0603 - set once per process
    if _function is None:
        assert _make is not None
        _function = _make()
    return _function(item)
