"""A policy that runs in processes of its own, so that the process which answers robots is always free to do so.

Threads would share the interpreter lock with it: a thread that computes may be suspended while it holds the lock.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.deploy.realtime import leave_realtime
from ddp_cli.deploy.runtime import Policy, PolicyError
from ddp_cli.parallel import default_workers, start_process

NICENESS = 5  # of the processes: robots are answered first
ATTEMPTS = 3  # to compute a chunk, each in a new process


class PolicyInProcesses(Policy):
    """An exported policy whose graph runs in one process per core, or in a single one on another device than the CPU.

    May be used from any number of threads. A process that crashes is replaced, and what it computed is computed again.
    """

    def __init__(self, folder: str | Path, threads: int = 1, provider: str = "cpu") -> None:
        super().__init__(folder, threads, provider)  # checks the graph
        del self._session
        self._settings = (self.folder, threads, provider)
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        for _ in range(default_workers() if provider == "cpu" else 1):
            self._idle.put(self._start())

    def _start(self) -> Connection:
        connection, other = Pipe()
        start_process(_run_policy, other, self.spec, *self._settings)
        other.close()
        return connection

    def run_graph(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        connection = self._idle.get()
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    if connection.closed:
                        connection = self._start()  # fails if the fork server was killed, too, which is then replaced
                    connection.send(inputs)
                    result = connection.recv()
                    break
                except (EOFError, OSError) as e:
                    connection.close()
                    if attempt == ATTEMPTS:
                        raise PolicyError(
                            f"the process that runs the policy crashed {attempt} times (killed, or out of memory)."
                        ) from e
        finally:
            self._idle.put(connection)
        if isinstance(result, str):
            raise PolicyError(result)
        action: NDArray[np.float32] = result
        return action


def _run_policy(connection: Connection, spec: Mapping[str, Any], *settings: Any) -> None:
    """Answer every set of inputs with actions, or with the message of an error, until the other end is closed. A policy
    that cannot be loaded, because its folder was removed for example, or that is not the one of `spec` any more, is the
    answer to the first, and the end.
    """
    leave_realtime()  # inherited from the thread that replaced a process
    os.nice(NICENESS)
    try:
        policy = Policy(*settings)
        if policy.spec != spec:  # robots keep the limits of the one that they were started with
            raise PolicyError(f"'{policy.folder}' holds another policy than at the start: start again to use it.")
    except PolicyError as e:
        with suppress(EOFError, OSError):  # the other end is closed
            connection.recv()
            connection.send(str(e))
        return
    while True:
        try:
            inputs = connection.recv()
        except EOFError:
            return
        try:
            result: NDArray[np.float32] | str = policy.run_graph(inputs)
        except Exception as e:  # noqa: BLE001 - onnxruntime raises its own types, which cannot be pickled
            result = str(e) or type(e).__name__
        connection.send(result)
