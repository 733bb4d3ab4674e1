"""Serves an exported policy to robots over websockets; `client.py` says what is sent.

Every connection has an observation queue of its own. A message that makes no sense is answered with an error and the
connection goes on; one that is too large ends it (code 1009), as the protocol has it. GET /health tells how it goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import ipaddress
import json
import os
import secrets
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ddp_cli.deploy.client import pack, unpack
from ddp_cli.deploy.runtime import Policy, PolicyError, Stream

KEPT = 10_000  # latencies that the statistics are of
LOG_EVERY = 60.0  # [s]
LARGEST_SEED = 2**63


@dataclass(frozen=True)
class Serving:
    """Where and for whom. Without a `token` anybody who reaches the port is served."""

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    max_bytes: int = 4 << 20
    """Of a message; two pictures of 84x84 are 42 kB."""
    max_clients: int = 64


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    return secrets.token_urlsafe(24)


class Server:
    """Serves `policy`; `log` takes lines for people."""

    def __init__(self, policy: Policy, how: Serving, log: Callable[[str], None]) -> None:
        self._policy, self._how, self._log = policy, how, log
        self._clients = self._busy = 0
        self._answered = self._refused = 0
        self._times: deque[float] = deque(maxlen=KEPT)  # of answers that took the policy [ms]
        self._pool = ThreadPoolExecutor(os.cpu_count(), "ddp-serve")
        self._stop = asyncio.Event()

    async def run(self, ready: Callable[[int], None] = lambda _: None) -> None:
        """Serves until `stop`, SIGINT or SIGTERM; `ready` is told the port."""
        how, loop = self._how, asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not this thread, or system
                loop.add_signal_handler(number, self._stop.set)
        # No page in a browser may reach a robot: those send an Origin.
        serving = serve(
            self._serve, how.host, how.port, process_request=self._admit, max_size=how.max_bytes, origins=[None]
        )
        async with serving as server:
            ready(next(iter(server.sockets)).getsockname()[1])
            while not self._stop.is_set():
                try:
                    await asyncio.wait_for(self._stop.wait(), LOG_EVERY)
                except TimeoutError:
                    self._log(self.words())
            while self._busy:  # what was asked is answered first
                await asyncio.sleep(0.01)
        self._pool.shutdown()
        self._log(self.words())

    def stop(self) -> None:
        """Ends `run`. To be called in its loop."""
        self._stop.set()

    def status(self) -> dict[str, Any]:
        """What /health tells."""
        times = np.percentile(self._times, (50, 95)).tolist() if self._times else [None, None]
        return {
            "status": "ok", "clients": self._clients, "answered": self._answered, "errors": self._refused,
            "p50_ms": times[0], "p95_ms": times[1],
        }  # fmt: skip

    def words(self) -> str:
        now = self.status()
        times = f", a chunk takes {now['p50_ms']:.1f} ms (p95 {now['p95_ms']:.1f} ms)" if self._times else ""
        return f"{now['clients']} clients, {now['answered']} answers, {now['errors']} errors{times}"

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/health":
            return connection.respond(http.HTTPStatus.OK, json.dumps(self.status()) + "\n")
        given = request.headers.get("Authorization", "")
        token = self._how.token
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a token is wanted: Authorization: Bearer ...\n")
        if self._clients >= self._how.max_clients:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        self._clients += 1
        stream, loop = Stream(self._policy), asyncio.get_running_loop()
        try:
            async for message in connection:
                self._busy += 1
                try:
                    await connection.send(await loop.run_in_executor(self._pool, self._answer, stream, message))
                finally:
                    self._busy -= 1
        except ConnectionClosed:
            pass  # with an error: clients come and go
        finally:
            self._clients -= 1

    def _answer(self, stream: Stream, message: str | bytes) -> bytes:
        begun = perf_counter()
        try:
            if isinstance(message, str):
                raise TypeError("messages are binary (msgpack), this is text")
            asked = unpack(message)
            if not isinstance(asked, dict):
                raise TypeError("a message is a map")
            answer, computed = _do(stream, asked)
        except (ValueError, TypeError, PolicyError) as e:
            self._refused += 1
            return pack({"error": str(e)})
        self._answered += 1
        if computed:
            self._times.append((perf_counter() - begun) * 1e3)
        return pack(answer)


def _do(stream: Stream, asked: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The answer, and whether the policy was computed for it."""
    op, obs = asked.get("op"), asked.get("obs")
    if op == "action" and isinstance(obs, dict):
        computes = not stream.pending
        return {"action": stream.action(obs)}, computes
    if op == "chunk" and isinstance(obs, list) and all(isinstance(one, dict) for one in obs):
        return {"action": stream.chunk(obs)}, True
    if op == "reset":
        seed = asked.get("seed")
        if seed is not None and not (type(seed) is int and 0 <= seed < LARGEST_SEED):
            raise ValueError(f"the seed {seed!r} is no whole number from 0")
        stream.reset(seed)
        return {"ok": True}, False
    if op == "describe":
        return {"policy": stream.policy.spec}, False
    raise ValueError('expected {"op": "action", "obs": {...}}, "chunk" with a list of them, "reset" or "describe"')
