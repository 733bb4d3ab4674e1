"""A server and its clients, over real sockets."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgpack
import numpy as np
import pytest
from conftest import ddp, look, refused
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ddp_cli.deploy.client import Client, ServerError, pack, unpack
from ddp_cli.deploy.runtime import ChunkRunner, Policy
from ddp_cli.deploy.server import Server, ServerOptions, is_loopback


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return Policy.load(policy_folder)


@contextmanager
def serving(policy: Policy, **how: object) -> Iterator[tuple[str, list[str]]]:
    """The address of a server in a thread, and what it logs."""
    ports: list[int] = []
    ready, said, servers = threading.Event(), [], []

    async def run() -> None:
        server = Server(policy, ServerOptions(port=0, **how), said.append)  # type: ignore[arg-type]
        servers.append((server, asyncio.get_running_loop()))
        await server.run(lambda port: (ports.append(port), ready.set()))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(20)
    try:
        yield f"ws://127.0.0.1:{ports[0]}", said
    finally:
        server, loop = servers[0]
        loop.call_soon_threadsafe(server.stop)
        thread.join(20)
        assert not thread.is_alive()


def health(address: str) -> dict:
    with urllib.request.urlopen(address.replace("ws:", "http:") + "/health") as answer:
        return json.loads(answer.read())


def test_it_answers_what_the_policy_says(policy: Policy) -> None:
    frames = [look(policy, i) for i in range(10)]
    with serving(policy) as (address, said), Client(address) as client:
        assert client.describe()["obs"] == policy.obs
        client.reset(7)
        found = np.stack([client.action(frame) for frame in frames])
        alone = ChunkRunner(policy, seed=7)
        np.testing.assert_array_equal(found, np.stack([alone.action(frame) for frame in frames]))
        client.reset(7)
        np.testing.assert_array_equal(client.chunk(frames[:2]), ChunkRunner(policy, seed=7).chunk(frames[:2]))
        now = health(address)
        assert (now["status"], now["clients"], now["answered"], now["errors"]) == ("ok", 1, 14, 0)
        assert now["p50_ms"] > 0
    assert "14 answers, 0 errors, a chunk takes" in said[-1]


def test_clients_have_queues_of_their_own(policy: Policy) -> None:
    def drive(address: str, number: int) -> np.ndarray:
        with Client(address) as client:
            client.reset(number)
            return np.stack([client.action(look(policy, 100 * number + i)) for i in range(12)])

    with serving(policy) as (address, _), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: drive(address, n), range(8)))
    for number, actions in enumerate(found):
        stream = ChunkRunner(policy, seed=number)
        expected = np.stack([stream.action(look(policy, 100 * number + i)) for i in range(12)])
        np.testing.assert_array_equal(actions, expected)


def nonsense(rng: np.random.Generator, good: bytes) -> bytes | str:
    """A message that cannot be answered."""
    spoilt = bytearray(good)
    spoilt[int(rng.integers(3))] ^= 0xFF
    deep: object = 1
    for _ in range(400):
        deep = [deep]
    return [
        "text", b"", rng.bytes(int(rng.integers(1, 200))), good[: int(rng.integers(1, len(good)))], bytes(spoilt),
        msgpack.packb(3), msgpack.packb([1, 2]), msgpack.packb({"op": "act"}),
        msgpack.packb({"op": "action", "obs": 3}),
        pack({"op": "action", "obs": {}}), pack({"op": "reset", "seed": -1}), pack({"op": "reset", "seed": 1.5}),
        msgpack.packb({"op": "action", "obs": {"a": {"dtype": "O", "shape": [1], "data": b"x"}}}),
        msgpack.packb({"op": "action", "obs": {"a": {"dtype": "uint8", "shape": [1 << 40], "data": b"x"}}}),
        msgpack.packb({"op": "action", "obs": {"a": {"dtype": "float32", "shape": [2], "data": b"x"}}}),
        msgpack.packb({"op": "chunk", "obs": []}), msgpack.packb({"op": "chunk", "obs": [1]}), msgpack.packb(deep),
        msgpack.packb(msgpack.ExtType(5, b"x")), b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    ][int(rng.integers(20))]  # fmt: skip


def test_a_thousand_bad_messages_and_fifty_clients_that_come_and_go(policy: Policy) -> None:
    """All the while one good client is answered, and rightly."""
    rng, frame = np.random.default_rng(0), look(policy)
    good = pack({"op": "action", "obs": frame})

    def come_and_go(number: int) -> None:
        own = np.random.default_rng(number)
        with connect(address, max_size=None) as connection:
            if number % 3 == 0:  # too large: the connection ends
                connection.send(bytes(1 << 17))
                with pytest.raises(ConnectionClosed) as closed:
                    connection.recv(timeout=20)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1009
            elif number % 3 == 1:  # gone without a word, an answer under way
                connection.send(good)
                connection.socket.close()
            else:
                for _ in range(int(own.integers(1, 4))):
                    connection.send(nonsense(own, good))
                    assert "error" in unpack(connection.recv(timeout=20))

    with serving(policy, max_bytes=1 << 16) as (address, _):
        alone = ChunkRunner(policy, seed=1)
        with Client(address) as client, connect(address) as bad, ThreadPoolExecutor(6) as pool:
            client.reset(1)
            guests = [pool.submit(come_and_go, i) for i in range(50)]
            for i in range(1000):
                bad.send(nonsense(rng, good))
                answer = unpack(bad.recv(timeout=20))
                assert answer.keys() == {"error", "id"}, answer
                if i % 50 == 0:
                    np.testing.assert_array_equal(client.action(frame), alone.action(frame))
            for guest in guests:
                guest.result()
            bad.send(pack({"op": "describe"}))  # the connection of the bad messages lives
            assert "policy" in unpack(bad.recv(timeout=20))
        with Client(address) as client:
            assert client.action(frame).shape == (7,)
        assert health(address)["errors"] >= 1000


def test_a_token_is_wanted_where_there_is_one(policy: Policy) -> None:
    with serving(policy, token="secret") as (address, _):
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            with pytest.raises(InvalidStatus) as refusal:
                connect(address, additional_headers=headers)
            assert refusal.value.response.status_code == 401
        with Client(address, token="secret") as client:
            assert client.action(look(policy)).shape == (7,)
        assert health(address)["status"] == "ok"


def test_pages_in_a_browser_and_too_many_clients_are_sent_away(policy: Policy) -> None:
    with serving(policy, max_clients=1) as (address, _):
        with pytest.raises(InvalidStatus) as refusal:
            connect(address, origin="http://evil.example")
        assert refusal.value.response.status_code == 403
        with Client(address) as client:
            client.reset()
            with pytest.raises(InvalidStatus) as refusal:
                connect(address)
            assert refusal.value.response.status_code == 503


def test_what_a_client_asks_wrongly_it_is_told(policy: Policy) -> None:
    with serving(policy) as (address, _), Client(address) as client:
        with pytest.raises(ServerError, match="'agentview_image' is missing"):
            client.action({"robot0_eef_pos": np.zeros(3)})
        with pytest.raises(TypeError, match="set cannot be sent"):
            client.action({"agentview_image": {1}})  # type: ignore[dict-item]
        assert client.action(look(policy)).shape == (7,)


def test_an_answer_that_came_too_late_is_not_taken_for_the_next(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, slow = look(policy), threading.Event()
    act = Policy.act
    monkeypatch.setattr(Policy, "act", lambda *args: (slow.wait(5), act(*args))[1])
    with serving(policy) as (address, _), Client(address, timeout=0.3) as client:
        client.reset(0)
        with pytest.raises(TimeoutError):
            client.action(frame)
        slow.set()
        assert client.describe()["obs"] == policy.obs
        client.reset(0)
        np.testing.assert_array_equal(client.action(frame), ChunkRunner(policy, seed=0).action(frame))


def test_it_ends_while_a_client_goes_on_asking(policy: Policy) -> None:
    ended, asked = threading.Event(), threading.Event()

    def go_on(address: str) -> None:
        with connect(address) as connection:
            try:
                while True:
                    for _ in range(8):  # there is always something under way
                        connection.send(pack({"op": "chunk", "obs": [look(policy)]}))
                    for _ in range(8):
                        connection.recv(timeout=20)
                    asked.set()
            except ConnectionClosed:
                ended.set()

    with serving(policy) as (address, _):
        thread = threading.Thread(target=go_on, args=(address,))
        thread.start()
        assert asked.wait(20)
    # `serving` has seen the server end
    thread.join(20)
    assert ended.is_set()


def test_small_messages_that_unfold_to_large_ones_are_refused(policy: Policy) -> None:
    with serving(policy) as (address, _), connect(address) as connection:
        for wide in ([{}] * 100_000, {str(i): 0 for i in range(50_000)}):
            connection.send(msgpack.packb({"op": "chunk", "obs": wide}))
            assert "exceeds" in unpack(connection.recv(timeout=20))["error"]


def test_arrays_go_over_the_wire_as_they_are() -> None:
    for array in (np.zeros((0, 3)), np.arange(6, dtype=np.uint8).reshape(1, 2, 3), np.float32([np.nan, np.inf])):
        found = unpack(pack({"a": [array]}))["a"][0]
        np.testing.assert_array_equal(found, array)
        assert found.flags.writeable
    np.testing.assert_array_equal(unpack(pack({"a": np.array([1, 2], ">f4")}))["a"], [1, 2])


def test_which_addresses_are_this_machine() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.3", "robot.local", ""))


def test_the_command_ends_gracefully(policy_folder: Path) -> None:
    command = [sys.executable, "-m", "ddp_cli.cli", "serve", policy_folder, "--port", "0", "--host", "0.0.0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        token = process.stdout.readline().removeprefix("token ").strip()
        port = int(process.stdout.readline().split(":")[-1].split(",")[0])
        with Client(f"ws://127.0.0.1:{port}", token=token) as client:
            client.reset(0)
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "1 answers" in log


def test_the_command_names_what_is_wrong(policy_folder: Path, tmp_path: Path) -> None:
    assert "holds no exported policy" in refused(ddp("serve", tmp_path))
    assert "--host 'a..b' is no address" in refused(ddp("serve", policy_folder, "--host", "a..b"))
