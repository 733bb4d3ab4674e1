"""A function mapped over many items in several processes, with results in the order of the items.

The processes are those of this machine; cluster/ has those of several ones.
"""

from __future__ import annotations

import itertools
import multiprocessing.util
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from ddp_cli.errors import WorkerError
from ddp_cli.interruption import signals_handled

Item = TypeVar("Item")
Result = TypeVar("Result")

EXIT_SECONDS = 3.0  # after which a worker that was told to end is killed
MAX_ADDRESS = 107  # bytes, of a Unix socket on Linux
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)
"""What a terminal sends to all processes of a command: on Ctrl-C, and when it is closed."""

# Of a worker process.
_make_function: Callable[[], Callable[[Any], Any]] | None = None
_function: Callable[[Any], Any] | None = None


def default_workers() -> int:
    """Number of processors available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_thread(function: Callable[[], Result]) -> Future[Result]:
    """Call `function` in a daemon thread, which does not delay the exit of the process."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as e:  # noqa: BLE001 - raised by future.result()
            future.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return future


def preload_workers(*modules: str) -> None:
    """Start to import `modules` in the server process that workers are forked from, in the background.

    Workers then start without the seconds that these imports take. Do not name modules that start threads or open
    devices when they are imported.
    """
    if _can_fork():
        forkserver.set_forkserver_preload([*modules])
        with _terminal_ignored():
            forkserver.ensure_running()


def start_process(function: Callable[..., object], *args: object) -> BaseProcess:
    """Start `function(*args)` in a process that ignores Ctrl-C and SIGHUP and ends with this one. All must be
    picklable.
    """
    process: BaseProcess = _context().Process(target=_run_with_parent, args=(function, *args), daemon=True)  # type: ignore[attr-defined]
    with _terminal_ignored():
        process.start()
    return process


def _run_with_parent(function: Callable[..., object], *args: object) -> None:
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    function(*args)


def _can_fork() -> bool:
    """Whether workers can be forked from a server process, which starts them faster.

    System libraries of macOS do not support it, and the address of the server, a socket in the temporary folder, takes
    `MAX_ADDRESS` bytes.
    """
    address = os.fsencode(tempfile.gettempdir()) + b"/pymp-12345678/listener-12345678"
    return sys.platform == "linux" and len(address) <= MAX_ADDRESS


def _context() -> BaseContext:
    return get_context("forkserver" if _can_fork() else "spawn")


class FailedItem(Generic[Item]):
    """Takes the place of the result of an item whose worker process crashed on every attempt."""

    def __init__(self, item: Item) -> None:
        self.item = item


class Cluster(Protocol):
    """Worker processes on several machines."""

    def at_most(self, count: int) -> Cluster:
        """The same machines with `count` processes or fewer."""

    def map(
        self, make_function: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Generator[Result | FailedItem[Item], None, None]:
        """As `fault_tolerant_map`."""


Workers = int | Cluster
"""How many processes of this machine, or the processes of a cluster."""


def at_most(workers: Workers, count: int) -> Workers:
    """`workers`, but no more processes than `count`."""
    return min(workers, count) if isinstance(workers, int) else workers.at_most(count)


def ordered_map(
    make_function: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: Workers
) -> Generator[Result, None, None]:
    """Yield `make_function()(item)` for every item, in order. `items` may be infinite.

    `make_function` must be picklable and is called once in each process, to create a simulator for example. With one
    worker everything runs in this process. A few items are submitted at a time, so memory does not grow with their
    number. Close the generator (`contextlib.closing`) to stop the processes at once. WorkerError if a process crashes;
    on a cluster, if an item crashes its process twice.
    """
    with closing(fault_tolerant_map(make_function, items, workers, max_retries=0)) as results:
        for result in results:
            if isinstance(result, FailedItem):
                raise WorkerError(
                    "a worker process crashed (killed, or out of memory).", "Run again with fewer --workers."
                )
            yield result


def fault_tolerant_map(
    make_function: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: Workers, max_retries: int = 2
) -> Generator[Result | FailedItem[Item], None, None]:
    """Like `ordered_map`, but retry after crashes.

    When a process crashes, all are restarted and the items in progress are run again. After a second crash, the next
    item runs alone, so no other one can cause a third. After more than `max_retries` crashes in a row, its result is
    `FailedItem(item)`. A cluster has its own rule: an item is retried once.
    """
    if not isinstance(workers, int):
        yield from workers.map(make_function, items)
        return
    if workers <= 1:
        function = make_function()
        yield from (function(item) for item in items)
        return
    pool = _Pool(make_function, workers)
    pending: deque[Item] = deque()
    remaining, crashes = iter(items), 0
    try:
        while True:
            pending.extend(itertools.islice(remaining, workers + 2 - len(pending)))
            if not pending:
                pool.close()
                return
            result: Result | FailedItem[Item]
            try:
                result = pool.first_result(pending, alone=crashes >= 2)
            except BrokenProcessPool:
                crashes += 1
                pool.stop()
                pool = _Pool(make_function, workers)
                if crashes <= max_retries:
                    continue
                result = FailedItem(pending[0])
            pending.popleft()
            crashes = 0
            yield result
    finally:
        pool.stop()


class _Pool:
    """Worker processes and their submitted items, whose results are retrieved in order."""

    def __init__(self, make_function: Callable[[], Callable[[Any], Any]], workers: int) -> None:
        self._executor = ProcessPoolExecutor(workers, _context(), initializer=_init_worker, initargs=(make_function,))
        self._futures: deque[Future[Any]] = deque()

    def first_result(self, items: Sequence[Any], alone: bool) -> Any:
        """The result of the first of `items`; unless it runs `alone`, the others are submitted as well."""
        for item in itertools.islice(items, len(self._futures), 1 if alone else None):
            try:
                with _terminal_ignored():
                    self._futures.append(self._executor.submit(_call, item))
            except (EOFError, ConnectionError) as e:  # the fork server crashed
                raise BrokenProcessPool(str(e)) from e
        result = self._futures[0].result()
        self._futures.popleft()
        return result

    def close(self) -> None:
        """Wait for idle processes to exit."""
        self._executor.shutdown(wait=True)

    def stop(self) -> None:
        """Terminate the processes without waiting for the items in progress."""
        processes = list((self._executor._processes or {}).values())
        for process in processes:
            process.terminate()
        timer = threading.Timer(EXIT_SECONDS, _kill, (processes,))
        timer.start()
        self._executor.shutdown(wait=True, cancel_futures=True)
        timer.cancel()


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


@contextmanager
def _terminal_ignored() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C and the end of their terminal (SIGHUP): the parent handles them, and ends
    the processes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with signals_handled(dict.fromkeys(TERMINAL_SIGNALS, signal.SIG_IGN)):
        yield


def _init_worker(make_function: Callable[[], Callable[[Any], Any]]) -> None:
    global _make_function  # noqa: PLW0603 - set once per process
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa renders in the calling thread
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _exit_worker)
    _make_function = make_function


def _exit_worker(_signal: int, _frame: FrameType | None) -> None:
    """End this process, after its finalizers, which close what would outlive it."""
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]
    os._exit(1)


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Any) -> Any:
    # Created here and not in _init_worker: an exception there would break the pool and hide its cause.
    global _function  # noqa: PLW0603 - set once per process
    try:
        if _function is None:
            assert _make_function is not None
            _function = _make_function()
        return _function(item)
    except BaseException as e:
        error = sendable_error(e)
        if error is e:
            raise
        raise error from e


def sendable_error(e: BaseException) -> BaseException:
    """`e` if it arrives in the parent process as it is, or else a RuntimeError that says what it was."""
    return e if _is_sendable(e) else RuntimeError(f"{type(e).__name__}: {e}")


def _is_sendable(e: BaseException) -> bool:
    """Whether an exception arrives in the parent process as it is; others would break the pool and hide their cause."""
    try:
        return isinstance(e, Exception) and type(pickle.loads(pickle.dumps(e))) is type(e)  # noqa: S301 - its own bytes
    except Exception:  # noqa: BLE001 - the classes of libraries can fail in any way
        return False
