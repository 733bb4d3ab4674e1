"""One function over many items in several processes, results in the order of the items."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from ddp_cli.errors import WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

_make: Callable[[], Callable[[Any], Any]] | None = None
_function: Callable[[Any], Any] | None = None


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yields `make()(item)` for every item, in order; `items` may be endless.

    `make` runs once in each process (build a simulator there) and must be picklable; with one worker
    everything runs in this process. Few items are under way at a time, so memory does not grow with
    their number. Close the generator (contextlib.closing) to stop the processes at once. Raises WorkerError
    when a process dies.
    """
    if workers <= 1:
        function = make()
        yield from (function(item) for item in items)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(make,))
    pending: deque[Future[Result]] = deque()
    finished = False
    try:
        for item in items:
            with _interrupts_held():
                pending.append(pool.submit(_call, item))
            if len(pending) >= workers + 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        finished = True
    except BrokenProcessPool as e:
        raise WorkerError("a worker process died (killed, or out of memory).", "Run again with fewer --workers.") from e
    finally:
        if not finished:  # nobody waits for what is still under way
            for process in list((pool._processes or {}).values()):
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


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
    os.environ["LP_NUM_THREADS"] = "1"  # Mesa draws with one thread per process
    _make = make


def _call(item: Any) -> Any:
    # Made here and not in _start: an exception there would break the pool and hide its reason.
    global _function  # noqa: PLW0603 - set once per process
    if _function is None:
        assert _make is not None
        _function = _make()
    return _function(item)
