"""Serves an exported policy to robots over websockets; `client.py` documents the protocol.

Each connection has its own observation history and previous action. An invalid message is answered with an error and
the connection stays open; a message that is too large closes it (code 1009, as in the websocket protocol), and so does
a client that does not read its replies. GET /health returns the status.
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
from ddp_cli.deploy.runtime import ChunkRunner, Policy

LATENCY_WINDOW = 10_000  # latest replies that the latency statistics cover
LOG_INTERVAL = 60.0  # [s]
SHUTDOWN_TIMEOUT = 5.0  # [s], for requests received before the shutdown
SEND_TIMEOUT = 10.0  # [s], after which a client that does not read its replies is disconnected
POLL_INTERVAL = 0.01  # [s], during the shutdown
SEED_LIMIT = 2**63
MAX_ITEMS = 256  # of a list or map in a request
MAX_ERROR_LENGTH = 500  # [characters], because errors quote the request


@dataclass(frozen=True)
class ServerOptions:
    """Address and limits of a server. Without a `token`, everyone who can reach the port is served."""

    host: str = "127.0.0.1"
    port: int = 8765
    """0: any free port."""
    token: str | None = None
    max_bytes: int | None = None
    """Largest accepted message; by default large enough for a dozen observations."""
    max_clients: int = 64


def is_loopback(host: str) -> bool:
    """Whether `host` can only be reached from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def generate_token() -> str:
    return secrets.token_urlsafe(24)


class Server:
    """Serves `policy`. `log` receives a status line every minute and at the end."""

    def __init__(self, policy: Policy, options: ServerOptions, log: Callable[[str], None]) -> None:
        self._policy, self._options, self._log = policy, options, log
        self._clients = self._active_requests = 0
        self._answered = self._errors = 0
        self._latencies: deque[float] = deque(maxlen=LATENCY_WINDOW)  # of replies that ran the policy [ms]
        self._pool = ThreadPoolExecutor(os.cpu_count(), "ddp-serve")
        self._stop = asyncio.Event()

    async def run(self, on_ready: Callable[[int], None] = lambda _: None) -> None:
        """Serve until `stop`, SIGINT or SIGTERM. `on_ready` is called with the port."""
        options, loop = self._options, asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Unavailable outside of the main thread and on Windows.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._stop.set)
        # Browsers send an Origin header: refuse it, so that no web page can control a robot.
        listener = serve(
            self._serve_client, options.host, options.port, process_request=self._process_request, origins=[None],
            max_size=options.max_bytes or default_max_bytes(self._policy), max_queue=2,
        )  # fmt: skip
        async with listener as server:
            on_ready(next(iter(server.sockets)).getsockname()[1])
            while not self._stop.is_set():
                try:
                    await asyncio.wait_for(self._stop.wait(), LOG_INTERVAL)
                except TimeoutError:
                    self._log(self.summary())
            deadline = loop.time() + SHUTDOWN_TIMEOUT
            while self._active_requests and loop.time() < deadline:
                await asyncio.sleep(POLL_INTERVAL)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._log(self.summary())

    def stop(self) -> None:
        """End `run`. Must be called in its event loop."""
        self._stop.set()

    def status(self) -> dict[str, Any]:
        """The content of /health."""
        p50, p95 = np.percentile(self._latencies, (50, 95)).tolist() if self._latencies else (None, None)
        return {
            "status": "ok", "clients": self._clients, "answered": self._answered, "errors": self._errors,
            "p50_ms": p50, "p95_ms": p95,
        }  # fmt: skip

    def summary(self) -> str:
        """The status in one line."""
        status = self.status()
        latency = f", {status['p50_ms']:.1f} ms per chunk (p95 {status['p95_ms']:.1f} ms)" if self._latencies else ""
        return f"{status['clients']} clients, {status['answered']} replies, {status['errors']} errors{latency}"

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer /health, and refuse clients without the token or above the limit."""
        if request.path == "/health":
            return connection.respond(http.HTTPStatus.OK, json.dumps(self.status()) + "\n")
        authorization = request.headers.get("Authorization", "")
        token = self._options.token
        if token and not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "token required: Authorization: Bearer TOKEN\n")
        if self._clients >= self._options.max_clients:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    async def _serve_client(self, connection: ServerConnection) -> None:
        self._clients += 1
        runner, loop = ChunkRunner(self._policy), asyncio.get_running_loop()
        try:
            async for message in connection:
                if self._stop.is_set():
                    break
                self._active_requests += 1
                try:
                    reply = await loop.run_in_executor(self._pool, _handle_message, runner, message)
                    self._count(reply)
                    await self._send(connection, reply)
                finally:
                    self._active_requests -= 1
        except ConnectionClosed:
            pass  # clients may disconnect at any time, also without a closing handshake
        finally:
            self._clients -= 1

    async def _send(self, connection: ServerConnection, reply: _Reply) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await connection.send(reply.message)
        except TimeoutError:  # a closing handshake would wait as long
            self._errors += 1
            connection.transport.abort()

    def _count(self, reply: _Reply) -> None:
        self._errors += reply.is_error
        self._answered += not reply.is_error
        if reply.latency_ms is not None:
            self._latencies.append(reply.latency_ms)


@dataclass(frozen=True)
class _Reply:
    message: bytes
    is_error: bool
    latency_ms: float | None
    """None where the policy did not run."""


def default_max_bytes(policy: Policy) -> int:
    """Size of a message with a dozen observations [bytes], at 1 byte per pixel and 8 per other value."""
    sizes = (
        math.prod(obs.get("recorded_shape", obs["shape"])) * (1 if obs["dtype"] == "uint8" else 8)
        for obs in policy.obs.values()
    )
    return 12 * sum(sizes) + (1 << 16)


def _handle_message(runner: ChunkRunner, message: str | bytes) -> _Reply:
    start, request_id = perf_counter(), None
    try:
        if isinstance(message, str):
            raise TypeError("expected a binary message (msgpack), received text")
        request = unpack(message, MAX_ITEMS)
        if not isinstance(request, dict):
            raise TypeError("a message must be a map")
        request_id = request.get("id") if isinstance(request.get("id"), int) else None
        content, ran_policy = _handle_request(runner, request)
    except Exception as e:  # noqa: BLE001 - whatever a message causes concerns its sender alone
        error = str(e) or type(e).__name__
        error = error if len(error) <= MAX_ERROR_LENGTH else f"{error[:MAX_ERROR_LENGTH]}..."
        return _Reply(pack({"error": error, "id": request_id}), True, None)
    return _Reply(pack({**content, "id": request_id}), False, (perf_counter() - start) * 1e3 if ran_policy else None)


def _handle_request(runner: ChunkRunner, request: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The content of the reply, and whether the policy ran for it."""
    op, obs = request.get("op"), request.get("obs")
    if op == "action" and isinstance(obs, dict):
        runs_policy = not runner.pending
        return {"action": runner.action(obs)}, runs_policy
    if op == "chunk" and isinstance(obs, list) and all(isinstance(item, dict) for item in obs):
        return {"action": runner.chunk(obs)}, True
    if op == "reset":
        seed = request.get("seed")
        if seed is not None and not (type(seed) is int and 0 <= seed < SEED_LIMIT):
            raise ValueError(f"invalid seed {seed!r}, expected an integer from 0")
        runner.reset(seed)
        return {"ok": True}, False
    if op == "describe":
        return {"policy": runner.policy.spec}, False
    raise ValueError('expected {"op": "action", "obs": {...}}, "chunk" with a list of obs, "reset" or "describe"')
