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
import math
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
from ddp_cli.deploy.runtime import ChunkRunner, Policy, PolicyError

KEPT = 10_000  # latencies that the statistics are of
LOG_EVERY = 60.0  # [s]
LARGEST_SEED = 2**63
LONGEST = 256  # items of a list or a map in a message
DRAIN = 5.0  # [s], for what was asked before the end


@dataclass(frozen=True)
class ServerOptions:
    """Where and for whom. Without a `token` anybody who reaches the port is served."""

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    max_bytes: int | None = None
    """Of a message; by default so much that a dozen observations fit."""
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

    def __init__(self, policy: Policy, how: ServerOptions, log: Callable[[str], None]) -> None:
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
            self._serve, how.host, how.port, process_request=self._admit, origins=[None],
            max_size=how.max_bytes or largest_message(self._policy), max_queue=2,
        )  # fmt: skip
        async with serving as server:
            ready(next(iter(server.sockets)).getsockname()[1])
            while not self._stop.is_set():
                try:
                    await asyncio.wait_for(self._stop.wait(), LOG_EVERY)
                except TimeoutError:
                    self._log(self.words())
            ends = loop.time() + DRAIN
            while self._busy and loop.time() < ends:  # what was asked is answered first
                await asyncio.sleep(0.01)
        self._pool.shutdown(wait=False, cancel_futures=True)
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
        stream, loop = ChunkRunner(self._policy), asyncio.get_running_loop()
        try:
            async for message in connection:
                if self._stop.is_set():
                    break
                self._busy += 1
                try:
                    answer = await loop.run_in_executor(self._pool, _answer, stream, message)
                    self._count(answer)
                    await connection.send(answer.message)
                finally:
                    self._busy -= 1
        except ConnectionClosed:
            pass  # with an error: clients come and go
        finally:
            self._clients -= 1

    def _count(self, answer: _Response) -> None:
        self._refused += answer.refused
        self._answered += not answer.refused
        if answer.policy_ms is not None:
            self._times.append(answer.policy_ms)


@dataclass(frozen=True)
class _Response:
    message: bytes
    refused: bool
    policy_ms: float | None
    """How long it took [ms], where the policy was computed for it."""


def largest_message(policy: Policy) -> int:
    """Bytes in which a dozen observations fit, each number with 8 bytes and each pixel with one."""
    sizes = (math.prod(obs["shape"]) * (1 if obs["dtype"] == "uint8" else 8) for obs in policy.obs.values())
    return 12 * sum(sizes) + (1 << 16)


def _answer(stream: ChunkRunner, message: str | bytes) -> _Response:
    begun, number = perf_counter(), None
    try:
        if isinstance(message, str):
            raise TypeError("messages are binary (msgpack), this is text")
        asked = unpack(message, LONGEST)
        if not isinstance(asked, dict):
            raise TypeError("a message is a map")
        number = asked.get("id") if isinstance(asked.get("id"), int) else None
        answer, computed = _do(stream, asked)
    except (ValueError, TypeError, PolicyError) as e:
        return _Response(pack({"error": str(e), "id": number}), True, None)
    return _Response(pack({**answer, "id": number}), False, (perf_counter() - begun) * 1e3 if computed else None)


def _do(stream: ChunkRunner, asked: dict[str, Any]) -> tuple[dict[str, Any], bool]:
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
