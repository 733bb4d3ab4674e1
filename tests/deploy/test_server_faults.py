"""Clients that misbehave concern nobody else: they get an error, or are disconnected."""

from __future__ import annotations

import gc
import socket
import time
from pathlib import Path

import msgpack
import numpy as np
import pytest
from bench.server_load import handshake, mask_frame
from conftest import random_observation
from deploy.test_server import health, serving
from websockets.sync.client import connect

from ddp_cli.deploy import server
from ddp_cli.deploy.client import Client, pack, unpack
from ddp_cli.deploy.runtime import Policy


def connect_raw(address: str) -> socket.socket:
    """A connection after its handshake that can hold back the server's replies."""
    host, _, port = address.removeprefix("ws://").rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.sendall(handshake(address))
    return client


def test_a_client_that_does_not_read_is_disconnected(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEND_TIMEOUT", 0.3)
    policy, frame = Policy.load(policy_folder), mask_frame(pack({"op": "describe", "ignored": bytes(60_000)}))
    with serving(policy) as (address, _), Client(address) as robot, connect_raw(address) as stuck:
        stuck.settimeout(0.2)
        with pytest.raises(OSError, match=r"timed out|reset|Broken pipe"):
            while True:
                stuck.sendall(frame)
        deadline = time.monotonic() + 20
        while health(address)["clients"] > 1 and time.monotonic() < deadline:
            assert robot.action(random_observation(policy)).shape == (7,)
        assert health(address)["clients"] == 1
        assert health(address)["errors"] == 1


def test_half_open_connections_block_nobody(policy_folder: Path) -> None:
    policy, step = Policy.load(policy_folder), random_observation(Policy.load(policy_folder))
    with serving(policy) as (address, _):
        request, frame = handshake(address), mask_frame(bytes(1000))
        clients = [connect_raw(address) for _ in range(20)]
        for i, client in enumerate(clients):
            client.sendall([frame[:1], frame[:500], b"\x16\x03\x01", request][i % 4])
        with Client(address, timeout=10) as robot:
            assert robot.action(step).shape == (7,)
        for client in clients:
            client.close()
        with Client(address, timeout=10) as robot:
            assert robot.action(step).shape == (7,)


def test_errors_quote_little_of_the_request(policy_folder: Path) -> None:
    with serving(Policy.load(policy_folder)) as (address, _), connect(address) as connection:
        for request in (
            {"op": "reset", "seed": "x" * 60_000},
            {"op": "action", "obs": {"a": {"dtype": "f" * 60_000, "shape": [1], "data": b""}}},
            {"op": "action", "obs": {"a": {"dtype": "uint8", "shape": ["y" * 60_000], "data": b""}}},
        ):
            connection.send(msgpack.packb(request))
            error = unpack(connection.recv(timeout=20))["error"]
            assert 20 < len(error) < 600


class FailingPolicy(Policy):
    """Raises an error that no message should cause."""

    def predict(self, obs: object, noise: object = None, prefix: object = None) -> np.ndarray:
        raise OverflowError("unexpected")


def test_unexpected_errors_keep_the_connection(policy_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = FailingPolicy(policy_folder)
    with serving(policy) as (address, _), connect(address) as connection:
        for _ in range(2):
            connection.send(pack({"op": "action", "obs": random_observation(policy), "id": 7}))
            assert unpack(connection.recv(timeout=20)) == {"error": "unexpected", "id": 7}
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_only_places_of_arrays_are_decoded() -> None:
    """Deeply nested or long lists would cost time that other clients wait for."""
    array = {"dtype": "uint8", "shape": [1], "data": b"\x05"}
    message = {"op": "chunk", "obs": [{"a": array}], "b": [[array]], "c": {"d": {"e": {"f": array}}}}
    decoded = unpack(msgpack.packb(message))
    assert decoded["obs"][0]["a"].tolist() == [5]
    assert decoded["b"] == [[array]]
    assert decoded["c"]["d"]["e"]["f"] == array
