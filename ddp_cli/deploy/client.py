"""Client of `ddp serve`. Requires numpy, msgpack and websockets only; this file may be copied.

    with Client("ws://127.0.0.1:8765") as client:
        client.reset(seed=0)                      # start an episode
        action = client.action({key: array})      # one observation -> one action (Da,), once per control step

The server answers at once: it computes the next chunk of actions while the robot executes the current one. Only the
first action of an episode takes the time of the policy. If a chunk is late, the action stops the robot. Actions are
aligned by the time of their observations (`stamp`), so call `action` at the control rate in policy.json; a simulator
that runs at another speed gives its own time, step / rate. An observation that is not newer than the last one, of a
sensor that is slower or has stopped, is answered with the next action; after the end of the chunk the robot is stopped.

With `ddp serve --sync` the server has no notion of time: one action in Ta takes the time of the policy, and a seed
makes all of them reproducible.

Protocol: every message is one msgpack map in a binary frame. An array is the map {"dtype", "shape", "data"}, its data
the little-endian bytes in C order. Requests and their replies:

    {"op": "reset", "seed": integer or nil}          -> {"ok": true}
    {"op": "action", "obs": {key: array}, "stamp": seconds or nil}   -> {"action": array (Da,)}
    {"op": "chunk", "obs": [{key: array}, ...]}      -> {"action": array (Ta, Da)}; new observations, oldest first
    {"op": "describe"}                               -> {"policy": content of policy.json}

A stamp is the time of the observation by a clock of the client; without one, it is when the request arrives. The reply
to an invalid request is {"error": text}. An "id" in a request is repeated in its reply. Each connection has its own
observation history.

Shapes: Ta n_action_steps, Da action.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
from websockets.sync.client import connect

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

MAX_DEPTH = 3  # of the map of an array: "obs", list of observations, observation
DTYPES = ("uint8", "float32", "float64", "int64", "int32")


class ServerError(Exception):
    """The server replied with an error."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Encode a message, including its arrays."""
    return bytes(msgpack.packb(message, default=_encode_array))


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.name not in DTYPES:
            raise TypeError(f"arrays of {value.dtype.name} cannot be sent, valid dtypes: {', '.join(DTYPES)}")
        little_endian = value.astype(value.dtype.newbyteorder("<"))
        return {"dtype": little_endian.dtype.name, "shape": list(value.shape), "data": little_endian.tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent")


def unpack(message: bytes, max_items: int = 1 << 20) -> Any:
    """Decode a message; ValueError if it is invalid. Only data is decoded, nothing is executed.

    Lists and maps of more than `max_items` items are refused: a short message could otherwise decode to a hundred
    times its size.
    """
    try:
        return _decode_arrays(
            msgpack.unpackb(message, strict_map_key=True, max_array_len=max_items, max_map_len=max_items)
        )
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as e:
        raise ValueError(f"invalid message: {str(e) or type(e).__name__}") from e


def _decode_arrays(value: Any, depth: int = 0) -> Any:
    """`value` with its arrays, which are values or list items of maps: nothing else is visited, nor anything deeper
    than messages are.
    """
    if isinstance(value, list) and depth > 0:
        return [_decode_arrays(item, depth + 1) if isinstance(item, dict) else item for item in value]
    if not isinstance(value, dict) or depth > MAX_DEPTH:
        return value
    if value.keys() != {"dtype", "shape", "data"}:
        return {key: _decode_arrays(item, depth + 1) for key, item in value.items()}
    shape, data = value["shape"], value["data"]
    if value["dtype"] not in DTYPES or not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > 8:
        raise ValueError(f"arrays of {value['dtype']!r} are not accepted, valid dtypes: {', '.join(DTYPES)}")
    if not all(type(size) is int and 0 <= size < 1 << 31 for size in shape):
        raise ValueError(f"{shape!r} is not a shape")
    return np.frombuffer(data, np.dtype(value["dtype"]).newbyteorder("<")).reshape(shape).astype(value["dtype"])


class Client:
    """A connection to a server, `ws://HOST:PORT` or `HOST:PORT`. `token` is required by servers that were started with
    one; `timeout` [s].
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout
        self._last_id = 0
        self._exit_stack = ExitStack()
        url = address if "://" in address else f"ws://{address}"
        connection = connect(url, additional_headers=headers, open_timeout=timeout, max_size=None)
        self._connection = self._exit_stack.enter_context(connection)

    def reset(self, seed: int | None = None) -> None:
        """Start an episode: forget all observations. With a `seed` its actions are reproducible."""
        self._request({"op": "reset", "seed": seed})

    def action(self, obs: Mapping[str, Array], stamp: float | None = None, timeout: float | None = None) -> Array:
        """The action (Da,) for an observation taken at `stamp` [s], by default now. Call it once per control step.

        TimeoutError if there is no reply within `timeout` [s], by default that of the client: stop the robot.
        """
        stamp = time.monotonic() if stamp is None else stamp
        return np.asarray(self._request({"op": "action", "obs": dict(obs), "stamp": stamp}, timeout)["action"])

    def chunk(self, observations: Sequence[Mapping[str, Array]]) -> Array:
        """The next actions (Ta, Da), from new observations, oldest first."""
        return np.asarray(self._request({"op": "chunk", "obs": [dict(obs) for obs in observations]})["action"])

    def describe(self) -> dict[str, Any]:
        """The content of the policy's policy.json."""
        return dict(self._request({"op": "describe"})["policy"])

    def _request(self, message: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        self._last_id += 1
        self._connection.send(pack({**message, "id": self._last_id}))
        while True:
            frame = self._connection.recv(timeout=max(0.0, deadline - time.monotonic()))
            reply = unpack(frame if isinstance(frame, bytes) else frame.encode())
            # Others are late replies to requests that timed out. An error without an id is the reply to a message that
            # could not be decoded.
            if reply.get("id") in (self._last_id, None):
                break
        if "error" in reply:
            raise ServerError(reply["error"])
        return dict(reply)

    def close(self) -> None:
        self._exit_stack.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
