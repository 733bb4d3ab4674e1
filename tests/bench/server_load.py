"""Latency of a robot at 20 Hz while other clients misbehave: `python tests/bench/server_load.py policy/`.

With `--robots N`, instead: latency of N robots at once, their late actions, and the memory of the server over
`--seconds`. The first actions of episodes, which wait for the policy, are left out.

`ddp serve` runs in a process of its own. Quiet and loaded phases alternate. In a loaded phase a second process sends
malformed messages on eight connections, floods the server with requests whose replies it never reads, and leaves
connections half-open: before, during and after the handshake, and in the middle of a frame.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgpack
import numpy as np
from websockets.asyncio.client import connect as async_connect
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from ddp_cli.deploy.client import Client, ServerError, pack, unpack

CONNECTIONS = 8  # that send malformed messages
SLOW_READERS, HALF_OPEN = 8, 24
MEGABYTE = 1 << 20
CONTROL_HZ = 20  # of the robot, as in the built-in tasks

Obs = dict[str, np.ndarray]
Kind = Callable[[np.random.Generator, Obs], bytes | str]


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\x01"


def array(dtype: object, shape: object, data: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data": data}


def action_with(obs: Obs, value: object) -> bytes:
    """A request for an action whose first observation is `value`."""
    return pack({"op": "action", "obs": {**obs, next(iter(obs)): value}})


def flip_bytes(rng: np.random.Generator, message: bytes) -> bytes:
    damaged = bytearray(message)
    for position in rng.integers(0, min(len(damaged), 60), 4):
        damaged[position] ^= int(rng.integers(1, 256))
    return bytes(damaged)


KINDS: dict[str, Kind] = {
    "text": lambda rng, obs: '{"op": "describe"}',
    "empty": lambda rng, obs: b"",
    "random bytes": lambda rng, obs: rng.bytes(int(rng.integers(1, 5000))),
    "truncated": lambda rng, obs: (m := pack({"op": "action", "obs": obs}))[: int(rng.integers(1, len(m)))],
    "flipped bytes": lambda rng, obs: flip_bytes(rng, pack({"op": "action", "obs": obs})),
    "deep nesting": lambda rng, obs: nested(int(rng.integers(100, 20_000))),
    "wide list": lambda rng, obs: msgpack.packb({"op": "chunk", "obs": [{}] * 20_000}),
    "many small lists": lambda rng, obs: msgpack.packb([[[0] * 250] * 200]),
    "not a map": lambda rng, obs: msgpack.packb([1, "a", None][int(rng.integers(3))]),
    "keys that are numbers": lambda rng, obs: msgpack.packb({1: 2}),
    "unknown operation": lambda rng, obs: pack({"op": "shutdown"}),
    "operation of another type": lambda rng, obs: msgpack.packb({"op": ["action"], "obs": {"op": {}}}),
    "invalid seed": lambda rng, obs: pack({"op": "reset", "seed": [-1, 1.5, 1 << 63, "x" * 60_000][rng.integers(4)]}),
    "no observations": lambda rng, obs: pack({"op": "action", "obs": {}}),
    "wrong keys": lambda rng, obs: pack({"op": "action", "obs": {f"{key}_": x for key, x in obs.items()}}),
    "wrong type": lambda rng, obs: action_with(obs, ["x", 3, None, {}, [[1], [2, 3]]][rng.integers(5)]),
    "wrong shape": lambda rng, obs: action_with(obs, np.zeros(rng.integers(0, 9, 3), np.float32)),
    "wrong dtype": lambda rng, obs: action_with(obs, np.zeros(next(iter(obs.values())).shape, np.int32)),
    "nan": lambda rng, obs: pack({"op": "action", "obs": {k: np.full(x.shape, np.nan) for k, x in obs.items()}}),
    "object array": lambda rng, obs: action_with(obs, array("O", [1], b"x" * 8)),
    "huge shape": lambda rng, obs: action_with(obs, array("uint8", [1 << int(rng.integers(20, 64))], b"x")),
    "shape without elements": lambda rng, obs: action_with(obs, array("uint8", [0, (1 << 31) - 1, (1 << 31) - 1], b"")),
    "shape of another type": lambda rng, obs: action_with(obs, array("uint8", ["a", 1.5, None], b"")),
    "dtype as long as the message": lambda rng, obs: action_with(obs, array("f" * 60_000, [1], b"")),
    "pickle": lambda rng, obs: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "extension type": lambda rng, obs: msgpack.packb(msgpack.ExtType(5, b"x" * 100)),
    "too large": lambda rng, obs: bytes(8 * MEGABYTE),
}


def send_malformed(address: str, count: int, seconds: float, seed: int, obs: Obs) -> Counter[str]:
    """Send `count` messages of random kinds within `seconds`; how the server replied to them."""
    rng, outcomes, start = np.random.default_rng(seed), Counter[str](), time.monotonic()
    names = list(KINDS)
    with ExitStack() as stack:
        connection = stack.enter_context(connect(address, max_size=None))
        for i in range(count):
            time.sleep(max(0.0, start + i * seconds / count - time.monotonic()))
            name = names[int(rng.integers(len(names)))]
            try:
                connection.send(KINDS[name](rng, obs))
                reply = connection.recv(timeout=30)
                message = unpack(reply if isinstance(reply, bytes) else reply.encode())
                outcomes["error replies" if "error" in message else f"accepted: {name}"] += 1
            except (WebSocketException, OSError):
                outcomes["closed by the server" if name == "too large" else f"closed: {name}"] += 1
                connection = stack.enter_context(connect(address, max_size=None))
    return outcomes


def read_slowly(address: str, stop: threading.Event) -> int:
    """Send requests without reading the replies; the number sent until sending blocked."""
    sent = 0
    with socket.create_connection(_host_and_port(address)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(handshake(address))
        client.settimeout(0.5)
        frame = mask_frame(pack({"op": "describe", "ignored": bytes(60_000)}))  # fills the buffers in few messages
        while not stop.is_set():
            try:
                client.sendall(frame)
                sent += 1
            except TimeoutError:
                stop.wait()
            except OSError:  # closed by the server
                break
    return sent


def open_half(address: str, number: int, stop: threading.Event) -> None:
    """Leave a connection in one of six unfinished states until the server closes it."""
    request = handshake(address)
    frame = mask_frame(bytes(1000))
    starts = [b"", request[:30], b"\x16\x03\x01\x02\x00" * 9, request, request + frame[:1], request + frame[:500]]
    with suppress(OSError), socket.create_connection(_host_and_port(address)) as client:
        client.sendall(starts[number % len(starts)])
        stop.wait()


def handshake(address: str) -> bytes:
    host, port = _host_and_port(address)
    lines = (
        "GET / HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode()


def mask_frame(payload: bytes) -> bytes:
    """A binary frame of up to 64 KiB, masked with zeros."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return b"\x82" + size + bytes(4) + payload


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ws://").rpartition(":")
    return host, int(port)


def misbehave(address: str, count: int, seconds: float, seed: int, obs: Obs, results: multiprocessing.Queue) -> None:
    """All misbehaving clients of a phase, in a process of their own with low priority."""
    os.nice(10)
    stop, outcomes = threading.Event(), Counter[str]()
    with ThreadPoolExecutor(CONNECTIONS + SLOW_READERS + HALF_OPEN) as pool:
        slow = [pool.submit(read_slowly, address, stop) for _ in range(SLOW_READERS)]
        for i in range(HALF_OPEN):
            pool.submit(open_half, address, i, stop)
        each = math.ceil(count / CONNECTIONS)
        senders = [pool.submit(send_malformed, address, each, seconds, seed + i, obs) for i in range(CONNECTIONS)]
        try:
            for sender in senders:
                outcomes += sender.result()
        finally:
            stop.set()
        outcomes["requests of slow readers"] = sum(reader.result() for reader in slow)
    results.put(outcomes)


def control(address: str, seconds: float, obs: Obs) -> list[float]:
    """Latencies of a robot that requests an action at the control rate [ms]; nan where it got none."""
    latencies = []
    with Client(address) as client:
        client.reset(0)
        start = time.monotonic()
        for tick in range(int(seconds * CONTROL_HZ)):
            time.sleep(max(0.0, start + tick / CONTROL_HZ - time.monotonic()))
            before = time.perf_counter()
            try:
                is_valid = bool(np.isfinite(client.action(obs)).all())
            except (ServerError, WebSocketException, OSError):
                is_valid = False
            latencies.append((time.perf_counter() - before) * 1e3 if is_valid else math.nan)
    return latencies


async def control_all(address: str, robots: int, seconds: float, obs: Obs) -> tuple[list[float], int]:
    """Latencies [ms] of the actions of all robots but the first of each, and how many of them stopped a robot."""
    latencies: list[float] = []
    stops, loop, message = 0, asyncio.get_running_loop(), dict(obs)

    async def run(number: int) -> None:
        nonlocal stops
        async with async_connect(address, max_size=None, compression=None) as connection:
            await asyncio.sleep(number / robots / CONTROL_HZ)  # robots are not in step with each other
            start = loop.time()
            for tick in range(int(seconds * CONTROL_HZ)):
                await asyncio.sleep(start + tick / CONTROL_HZ - loop.time())
                request = pack({"op": "action", "obs": message, "stamp": loop.time()})
                before = time.perf_counter()
                await connection.send(request)
                reply = await connection.recv()
                took = (time.perf_counter() - before) * 1e3
                if tick == 0:
                    start = loop.time()
                    continue
                latencies.append(took)
                stops += not np.any(unpack(reply)["action"][:3])  # type: ignore[arg-type]

    await asyncio.gather(*(run(number) for number in range(robots)))
    return latencies, stops


def measure_robots(folder: Path, robots: int, seconds: float, options: Sequence[str]) -> None:
    with serving(folder, *options) as (address, pid):
        if "--realtime" in options:  # robots are other computers, which do not wait for a core of this one
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        with Client(address) as client:
            entries = client.describe()["obs"]
        rng = np.random.default_rng(0)
        obs = {
            key: rng.integers(0, 255, entry["shape"], np.uint8)
            if entry["dtype"] == "uint8"
            else rng.normal(size=entry["shape"]).astype(np.float32)
            for key, entry in entries.items()
        }
        asyncio.run(control_all(address, robots, 3.0, obs))  # warms up
        memory = [resident_megabytes(pid)]
        for _ in range(4):
            latencies, stops = asyncio.run(control_all(address, robots, seconds / 4, obs))
            p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
            print(
                f"{robots} robots: p50 {p50:.2f} ms   p95 {p95:.2f} ms   p99 {p99:.2f} ms   max {max(latencies):.1f} ms"
                f"   {len(latencies)} actions, {stops} of them stopped a robot",
                flush=True,
            )
            memory.append(resident_megabytes(pid))
        with urllib.request.urlopen(address.replace("ws:", "http:") + "/health") as response:
            health = json.loads(response.read())
    print(f"{health}, memory {' -> '.join(f'{m:.0f}' for m in memory)} MB")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    """The address and process id of a server."""
    command = [sys.executable, "-m", "ddp_cli.cli", "serve", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split(" at ")[1].split(",")[0], process.pid
        finally:
            process.terminate()


def resident_megabytes(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of a phase")
    parser.add_argument("--robots", type=int, default=0, help="measure so many robots at once")
    parser.add_argument("--sync", action="store_true", help="of `ddp serve`, with --robots")
    parser.add_argument("--realtime", action="store_true", help="of `ddp serve`, with --robots")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--messages", type=int, default=1000, help="malformed messages, in all rounds together")
    args = parser.parse_args()
    if args.robots:
        options = [f"--{name}" for name in ("sync", "realtime") if getattr(args, name)]
        measure_robots(args.policy, args.robots, args.seconds, options)
        return
    latencies: dict[str, list[float]] = {"quiet": [], "loaded": []}
    outcomes, context = Counter[str](), multiprocessing.get_context("spawn")
    with serving(args.policy) as (address, pid):
        with Client(address) as client:
            entries = client.describe()["obs"]
        obs = {key: np.zeros(entry["shape"], entry["dtype"]) for key, entry in entries.items()}
        control(address, 2.0, obs)  # warms up
        memory = [resident_megabytes(pid)]
        for i in range(args.rounds):
            latencies["quiet"] += control(address, args.seconds, obs)
            results = context.Queue()
            count = args.messages // args.rounds
            process = context.Process(target=misbehave, args=(address, count, args.seconds, 100 * i, obs, results))
            process.start()
            latencies["loaded"] += control(address, args.seconds, obs)
            outcomes += results.get(timeout=120)
            process.join()
            memory.append(resident_megabytes(pid))
        with urllib.request.urlopen(address.replace("ws:", "http:") + "/health") as response:
            health = json.loads(response.read())
    for phase, values in latencies.items():
        p50, p95, p99 = np.nanpercentile(values, (50, 95, 99))
        n_errors = int(np.isnan(values).sum())
        latency = f"p50 {p50:6.2f} ms   p95 {p95:6.2f} ms   p99 {p99:6.2f} ms"
        print(f"{phase:7} {latency}   {len(values)} actions, {n_errors} errors")
    print(", ".join(f"{name} {n}" for name, n in sorted(outcomes.items())))
    print(f"server: {health['errors']} errors, memory {' -> '.join(f'{m:.0f}' for m in memory)} MB")


if __name__ == "__main__":
    main()
