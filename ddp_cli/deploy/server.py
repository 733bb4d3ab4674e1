"""Serves an exported policy to robots over websockets; `client.py` documents the protocol.

Each connection has its own observations and actions (served_client.py). An invalid message is answered with an error
and the connection stays open; a message that is too large closes it (code 1009, as in the websocket protocol), and so
does a client that does not read its replies. GET /health returns the status.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ddp_cli.deploy.client import pack, unpack
from ddp_cli.deploy.realtime import enter_realtime, leave_realtime
from ddp_cli.deploy.runtime import Policy
from ddp_cli.deploy.served_client import InferencePool, StreamingClient, SynchronousClient, run_in

LOG_INTERVAL = 60.0  # [s]
SHUTDOWN_TIMEOUT = 5.0  # [s], for requests received before the shutdown
SEND_TIMEOUT = 10.0  # [s], after which a client that does not read its replies is disconnected
POLL_INTERVAL = 0.01  # [s], during the shutdown
MAX_ITEMS = 256  # of a list or map in a request
MAX_INLINE_BYTES = 1 << 18  # larger requests are decoded, and their images resized, outside of the event loop
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
    sync: bool = False
    """Compute a chunk when the previous one is used up, instead of meanwhile."""
    blend_steps: int = 0
    """Ticks over which each chunk is blended with the previous one; not with `sync`."""
    realtime: bool = False
    """Answer with real-time priority, which the system must permit."""


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
        self._pool = InferencePool()
        self._workers = ThreadPoolExecutor(os.cpu_count(), "ddp-decode", leave_realtime)
        self._stop = asyncio.Event()

    async def run(self, on_ready: Callable[[int], None] = lambda _: None) -> None:
        """Serve until `stop`, SIGINT or SIGTERM. `on_ready` is called with the port."""
        options, loop = self._options, asyncio.get_running_loop()
        if options.realtime:
            enter_realtime()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(RuntimeError, ValueError):  # unavailable outside of the main thread
                loop.add_signal_handler(number, self._stop.set)
        # Browsers send an Origin header: refuse it, so that no web page can control a robot.
        listener = serve(
            self._serve_client, options.host, options.port, process_request=self._process_request, origins=[None],
            compression=None,  # images of cameras hardly shrink, and it takes longer than everything else
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
        for pool in (self._pool, self._workers):
            pool.shutdown(wait=False, cancel_futures=True)
        self._log(self.summary())

    def stop(self) -> None:
        """End `run`. Must be called in its event loop."""
        self._stop.set()

    def status(self) -> dict[str, Any]:
        """The content of /health."""
        latencies = list(self._pool.latencies)
        p50, p95 = np.percentile(latencies, (50, 95)).tolist() if latencies else (None, None)
        return {
            "status": "ok", "clients": self._clients, "answered": self._answered, "errors": self._errors,
            "p50_ms": p50, "p95_ms": p95,
        }  # fmt: skip

    def summary(self) -> str:
        """The status in one line."""
        status = self.status()
        latency = (
            f", {status['p50_ms']:.1f} ms per chunk (p95 {status['p95_ms']:.1f} ms)" if self._pool.latencies else ""
        )
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
        if self._options.sync:
            client = SynchronousClient(self._policy, self._pool)
        else:
            client = StreamingClient(self._policy, self._pool, self._options.blend_steps)
        try:
            async for message in connection:
                if self._stop.is_set():
                    break
                self._active_requests += 1
                try:
                    await self._send(connection, await self._reply(client, message))
                finally:
                    self._active_requests -= 1
        except ConnectionClosed:
            pass  # clients may disconnect at any time, also without a closing handshake
        finally:
            client.close()
            self._clients -= 1

    async def _reply(self, client: SynchronousClient, message: str | bytes) -> bytes:
        request_id = None
        try:
            if isinstance(message, str):
                raise TypeError("expected a binary message (msgpack), received text")
            workers = self._workers if len(message) > MAX_INLINE_BYTES else None
            request = await run_in(workers, unpack, message, MAX_ITEMS)
            if not isinstance(request, dict):
                raise TypeError("a message must be a map")
            request_id = request.get("id") if isinstance(request.get("id"), int) else None
            reply = pack({**await client.answer(request, workers), "id": request_id})
        except Exception as e:  # noqa: BLE001 - whatever a message causes concerns its sender alone
            self._errors += 1
            error = str(e) or type(e).__name__
            error = error if len(error) <= MAX_ERROR_LENGTH else f"{error[:MAX_ERROR_LENGTH]}..."
            return pack({"error": error, "id": request_id})
        self._answered += 1
        return reply

    async def _send(self, connection: ServerConnection, reply: bytes) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await connection.send(reply)
        except TimeoutError:  # a closing handshake would wait as long
            self._errors += 1
            connection.transport.abort()


def default_max_bytes(policy: Policy) -> int:
    """Size of a message with a dozen observations [bytes], at 1 byte per pixel and 8 per other value."""
    sizes = (
        math.prod(obs.get("recorded_shape", obs["shape"])) * (1 if obs["dtype"] == "uint8" else 8)
        for obs in policy.obs.values()
    )
    return 12 * sum(sizes) + (1 << 16)
