"""A server and its clients, connected through sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgpack
import numpy as np
import pytest
from conftest import ddp, random_observation, refused
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ddp_cli.deploy import server as server_module
from ddp_cli.deploy.client import Client, ServerError, pack, unpack
from ddp_cli.deploy.runtime import ChunkRunner, Policy
from ddp_cli.deploy.server import Server, ServerOptions, is_loopback
from ddp_cli.errors import ConfigError

PERIOD = 0.05


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return Policy.load(policy_folder)


@contextmanager
def serving(policy: Policy, **options: object) -> Iterator[tuple[str, list[str]]]:
    """Address and log of a server that runs in a thread."""
    ports: list[int] = []
    ready, log, servers = threading.Event(), [], []

    async def run() -> None:
        server = Server(policy, ServerOptions(port=0, **options), log.append)  # type: ignore[arg-type]
        servers.append((server, asyncio.get_running_loop()))
        await server.run(lambda port: (ports.append(port), ready.set()))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(20)
    try:
        yield f"ws://127.0.0.1:{ports[0]}", log
    finally:
        server, loop = servers[0]
        loop.call_soon_threadsafe(server.stop)
        thread.join(20)
        assert not thread.is_alive()


def health(address: str) -> dict:
    with urllib.request.urlopen(address.replace("ws:", "http:") + "/health") as response:
        return json.loads(response.read())


def test_replies_equal_the_policy(policy: Policy) -> None:
    steps = [random_observation(policy, i) for i in range(10)]
    with serving(policy, sync=True) as (address, log), Client(address) as client:
        assert client.describe()["obs"] == policy.obs
        client.reset(7)
        actions = np.stack([client.action(step) for step in steps])
        runner = ChunkRunner(policy, seed=7)
        np.testing.assert_array_equal(actions, np.stack([runner.action(step) for step in steps]))
        client.reset(7)
        np.testing.assert_array_equal(client.chunk(steps[:2]), ChunkRunner(policy, seed=7).chunk(steps[:2]))
        status = health(address)
        assert (status["status"], status["clients"], status["answered"], status["errors"]) == ("ok", 1, 14, 0)
        assert status["p50_ms"] > 0
    assert "14 replies, 0 errors, " in log[-1]
    assert "ms per chunk" in log[-1]


def test_each_client_has_its_own_history(policy: Policy) -> None:
    def run_client(address: str, number: int) -> np.ndarray:
        with Client(address) as client:
            client.reset(number)
            return np.stack([client.action(random_observation(policy, 100 * number + i)) for i in range(12)])

    with serving(policy, sync=True) as (address, _), ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: run_client(address, n), range(8)))
    for number, actions in enumerate(results):
        runner = ChunkRunner(policy, seed=number)
        expected = np.stack([runner.action(random_observation(policy, 100 * number + i)) for i in range(12)])
        np.testing.assert_array_equal(actions, expected)


def test_an_action_never_waits_for_the_policy_but_the_first(policy_folder: Path) -> None:
    """One of two clients is in its first chunk all the time, and uses up every thread of the policy."""
    slow = SlowPolicy(policy_folder)
    with serving(slow) as (address, _), Client(address) as client, ThreadPoolExecutor(8) as pool:
        client.reset(0)
        start = time.perf_counter()
        client.action(random_observation(slow), 0.0)
        assert time.perf_counter() - start > SlowPolicy.SECONDS

        def first_action(number: int) -> None:
            with Client(address) as other:
                other.action(random_observation(slow, number))

        others = [pool.submit(first_action, i) for i in range(8)]
        actions, durations = [], []
        for tick in range(1, 12):
            start = time.perf_counter()
            actions.append(client.action(random_observation(slow, tick), tick * PERIOD))
            durations.append(time.perf_counter() - start)
        assert max(durations) < SlowPolicy.SECONDS, durations
        assert not all(other.done() for other in others)
        # The rest of the first chunk, though the clock of the client stood still while that was computed.
        runner = ChunkRunner(Policy.load(policy_folder), seed=0)
        expected = [runner.action(random_observation(slow, tick)) for tick in range(8)]
        np.testing.assert_array_equal(np.stack(actions[:7]), np.stack(expected[1:]))
        for other in others:
            other.result()


class SlowPolicy(Policy):
    SECONDS = 0.5

    def predict(self, *args: object) -> np.ndarray:
        time.sleep(self.SECONDS)
        return super().predict(*args)


def test_a_stream_executes_the_chunks_of_the_policy(policy: Policy) -> None:
    steps = [random_observation(policy, i) for i in range(6)]
    with serving(policy) as (address, _), Client(address) as client:
        for _ in range(2):
            client.reset(7)
            actions = np.stack([client.action(steps[tick], tick * PERIOD) for tick in range(4)])
            runner = ChunkRunner(policy, seed=7)
            np.testing.assert_array_equal(actions, np.stack([runner.action(step) for step in steps[:4]]))
            for n in range(200):  # the second chunk was requested at tick 4, and is executed once it has arrived
                action = client.action(steps[4], 4 * PERIOD + n * 1e-6)
                if not np.array_equal(action, runner.action(steps[4])):
                    break
                runner = ChunkRunner(policy, seed=7)
                _ = [runner.action(step) for step in steps[:4]]
                time.sleep(0.01)
            second = policy.limits.clamp(_second_chunk(policy, steps), actions[-1])
            np.testing.assert_array_equal(action, second[0].astype(np.float32))
        with pytest.raises(ServerError, match="invalid stamp 'now'"):
            client._request({"op": "action", "obs": steps[0], "stamp": "now"})


def _second_chunk(policy: Policy, steps: list) -> np.ndarray:
    generator = np.random.default_rng(7)
    policy.sample_noise(generator)
    obs = {key: np.stack([steps[3][key], steps[4][key]]) for key in policy.obs}
    return policy.predict(obs, policy.sample_noise(generator))


def test_large_images_are_decoded_outside_of_the_event_loop(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_INLINE_BYTES", 100)
    threads = []
    validate = Policy.validate_obs
    monkeypatch.setattr(
        Policy,
        "validate_obs",
        lambda *args: (threads.append(threading.current_thread().name), validate(*args))[1],
    )
    with serving(policy) as (address, _), Client(address) as client:
        assert client.action(random_observation(policy)).shape == (7,)
    assert all(name.startswith("ddp-decode") for name in threads[: len(policy.obs)]), threads


def invalid_message(rng: np.random.Generator, valid: bytes) -> bytes | str:
    damaged = bytearray(valid)
    damaged[int(rng.integers(3))] ^= 0xFF
    nested: object = 1
    for _ in range(400):
        nested = [nested]
    return [
        "text", b"", rng.bytes(int(rng.integers(1, 200))), valid[: int(rng.integers(1, len(valid)))], bytes(damaged),
        msgpack.packb(3), msgpack.packb([1, 2]), msgpack.packb({"op": "act"}),
        msgpack.packb({"op": "action", "obs": 3}),
        pack({"op": "action", "obs": {}}), pack({"op": "reset", "seed": -1}), pack({"op": "reset", "seed": 1.5}),
        msgpack.packb({"op": "action", "obs": {"a": {"dtype": "O", "shape": [1], "data": b"x"}}}),
        msgpack.packb({"op": "action", "obs": {"a": {"dtype": "uint8", "shape": [1 << 40], "data": b"x"}}}),
        msgpack.packb({"op": "action", "obs": {"a": {"dtype": "float32", "shape": [2], "data": b"x"}}}),
        msgpack.packb({"op": "chunk", "obs": []}), msgpack.packb({"op": "chunk", "obs": [1]}), msgpack.packb(nested),
        msgpack.packb(msgpack.ExtType(5, b"x")), b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    ][int(rng.integers(20))]  # fmt: skip


def test_a_client_is_served_during_invalid_messages_and_disconnections(policy: Policy) -> None:
    """A thousand invalid messages on one connection, and fifty clients that connect and disconnect."""
    rng, step = np.random.default_rng(0), random_observation(policy)
    valid = pack({"op": "action", "obs": step})

    def connect_and_disconnect(number: int) -> None:
        client_rng = np.random.default_rng(number)
        with connect(address, max_size=None) as connection:
            if number % 3 == 0:  # too large: the server closes the connection
                connection.send(bytes(1 << 17))
                with pytest.raises(ConnectionClosed) as closed:
                    connection.recv(timeout=20)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1009
            elif number % 3 == 1:  # closes the socket while the server computes its reply
                connection.send(valid)
                connection.socket.close()
            else:
                for _ in range(int(client_rng.integers(1, 4))):
                    connection.send(invalid_message(client_rng, valid))
                    assert "error" in unpack(connection.recv(timeout=20))

    with serving(policy, sync=True, max_bytes=1 << 16) as (address, _):
        runner = ChunkRunner(policy, seed=1)
        with Client(address) as client, connect(address) as connection, ThreadPoolExecutor(6) as pool:
            client.reset(1)
            futures = [pool.submit(connect_and_disconnect, i) for i in range(50)]
            for i in range(1000):
                connection.send(invalid_message(rng, valid))
                reply = unpack(connection.recv(timeout=20))
                assert reply.keys() == {"error", "id"}, reply
                if i % 50 == 0:
                    np.testing.assert_array_equal(client.action(step), runner.action(step))
            for future in futures:
                future.result()
            connection.send(pack({"op": "describe"}))  # the connection is still open
            assert "policy" in unpack(connection.recv(timeout=20))
        with Client(address) as client:
            assert client.action(step).shape == (7,)
        assert health(address)["errors"] >= 1000


def test_the_token_is_required(policy: Policy) -> None:
    with serving(policy, token="secret") as (address, _):
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            with pytest.raises(InvalidStatus) as refusal:
                connect(address, additional_headers=headers)
            assert refusal.value.response.status_code == 401
        with Client(address, token="secret") as client:
            assert client.action(random_observation(policy)).shape == (7,)
        assert health(address)["status"] == "ok"


def test_browsers_and_clients_above_the_limit_are_refused(policy: Policy) -> None:
    with serving(policy, max_clients=1) as (address, _):
        with pytest.raises(InvalidStatus) as refusal:
            connect(address, origin="http://evil.example")
        assert refusal.value.response.status_code == 403
        with Client(address) as client:
            client.reset()
            with pytest.raises(InvalidStatus) as refusal:
                connect(address)
            assert refusal.value.response.status_code == 503


def test_invalid_requests_raise_in_the_client(policy: Policy) -> None:
    with serving(policy) as (address, _), Client(address) as client:
        with pytest.raises(ServerError, match="'agentview_image' is missing"):
            client.action({"robot0_eef_pos": np.zeros(3)})
        with pytest.raises(TypeError, match="set cannot be sent"):
            client.action({"agentview_image": {1}})  # type: ignore[dict-item]
        assert client.action(random_observation(policy)).shape == (7,)


def test_messages_that_cannot_be_decoded_raise_at_once(policy: Policy) -> None:
    with serving(policy) as (address, _), Client(address) as client:
        for array in (np.zeros(3, np.float16), np.zeros(3, bool)):
            with pytest.raises(TypeError, match="cannot be sent, valid dtypes: uint8, float32"):
                client.action({"a": array})
        with pytest.raises(ServerError, match="arrays of 'O' are not accepted"):
            client._request({"op": "action", "obs": {"a": {"dtype": "O", "shape": [1], "data": b"x"}}})
        assert client.action(random_observation(policy)).shape == (7,)


def test_a_late_reply_is_not_taken_for_the_next(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    step, release = random_observation(policy), threading.Event()
    predict = Policy.predict
    monkeypatch.setattr(Policy, "predict", lambda *args: (release.wait(5), predict(*args))[1])
    with serving(policy) as (address, _), Client(address) as client:
        client.reset(0)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            client.action(step, timeout=0.3)
        assert time.monotonic() - start < 5
        release.set()
        assert client.describe()["obs"] == policy.obs
        client.reset(0)
        np.testing.assert_array_equal(client.action(step), ChunkRunner(policy, seed=0).action(step))


def test_it_shuts_down_while_a_client_keeps_sending(policy: Policy) -> None:
    closed, replied = threading.Event(), threading.Event()

    def keep_sending(address: str) -> None:
        with connect(address) as connection:
            try:
                while True:
                    for _ in range(8):  # so that requests are always pending
                        connection.send(pack({"op": "chunk", "obs": [random_observation(policy)]}))
                    for _ in range(8):
                        connection.recv(timeout=20)
                    replied.set()
            except ConnectionClosed:
                closed.set()

    with serving(policy) as (address, _):
        thread = threading.Thread(target=keep_sending, args=(address,))
        thread.start()
        assert replied.wait(20)
    # `serving` asserts that the server has ended
    thread.join(20)
    assert closed.is_set()


def test_small_messages_that_decode_to_large_ones_are_refused(policy: Policy) -> None:
    with serving(policy) as (address, _), connect(address) as connection:
        for items in ([{}] * 100_000, {str(i): 0 for i in range(50_000)}):
            connection.send(msgpack.packb({"op": "chunk", "obs": items}))
            assert "exceeds" in unpack(connection.recv(timeout=20))["error"]


def test_arrays_survive_encoding() -> None:
    for array in (np.zeros((0, 3)), np.arange(6, dtype=np.uint8).reshape(1, 2, 3), np.float32([np.nan, np.inf])):
        decoded = unpack(pack({"a": [array]}))["a"][0]
        np.testing.assert_array_equal(decoded, array)
        assert decoded.flags.writeable
    np.testing.assert_array_equal(unpack(pack({"a": np.array([1, 2], ">f4")}))["a"], [1, 2])


def test_loopback_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.3", "robot.local", ""))


def test_the_command_shuts_down_gracefully(policy_folder: Path) -> None:
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
    assert "1 replies" in log


def test_the_command_reports_invalid_arguments(policy_folder: Path, tmp_path: Path) -> None:
    assert "holds no exported policy" in refused(ddp("serve", tmp_path))
    message = refused(ddp("serve", policy_folder, "--blend-steps", "8"))
    assert "--blend-steps 8 does not fit in a chunk of 8 actions. At most 7." in message
    message = refused(ddp("serve", policy_folder, "--sync", "--blend-steps", "2"))
    assert "--blend-steps does not go with --sync" in message
    assert "--host 'a..b' is not an address" in refused(ddp("serve", policy_folder, "--host", "a..b"))


def test_only_the_thread_that_answers_has_realtime_priority(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    priorities: dict[str, int] = {}

    def set_scheduler(_pid: int, scheduler: int, _parameters: object) -> None:
        priorities[threading.current_thread().name] = scheduler

    monkeypatch.setattr(os, "sched_setscheduler", set_scheduler)
    monkeypatch.setattr(server_module, "MAX_INLINE_BYTES", 1)  # every message is decoded in another thread
    with serving(policy, realtime=True) as (address, _), Client(address) as client:
        client.action(random_observation(policy))
    decoding = [name for name in priorities if name.startswith("ddp-decode")]
    assert decoding
    assert all(priorities.pop(name) == os.SCHED_OTHER for name in decoding)
    assert list(priorities.values()) == [os.SCHED_RR]


def test_realtime_priority_that_is_not_permitted_is_refused(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(ConfigError, match="--realtime: the system does not permit it"):
        asyncio.run(Server(policy, ServerOptions(port=0, realtime=True), print).run())
