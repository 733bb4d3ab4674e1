"""Talks to `ddp serve`. Needs numpy, msgpack and websockets alone: this file may be copied out of the package.

    with Client("ws://127.0.0.1:8765") as robot:
        robot.reset(seed=0)                      # an episode begins
        action = robot.action({key: array})      # one observation in, one action (Da,) out, at every control step

One message is one msgpack map. An array is {"dtype", "shape", "data"}, its bytes in C order. Asked is

    {"op": "reset", "seed": integer or nil}          -> {"ok": true}
    {"op": "action", "obs": {key: array}}            -> {"action": array (Da,)}
    {"op": "chunk", "obs": [{key: array}, ...]}      -> {"action": array (Ta, Da)}; new observations, oldest first
    {"op": "describe"}                               -> {"policy": what policy.json says}

and what cannot be answered is answered with {"error": text}. An "id" in a message is repeated in its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import connect

Array = np.ndarray[Any, Any]

DTYPES = ("uint8", "float32", "float64", "int64", "int32")


class ServerError(Exception):
    """What the server answered instead."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message, arrays in it included."""
    return bytes(msgpack.packb(message, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        little = value.astype(value.dtype.newbyteorder("<"))
        return {"dtype": little.dtype.name, "shape": list(value.shape), "data": little.tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent")


def unpack(message: bytes, longest: int = 1 << 20) -> Any:
    """What `pack` packed; ValueError if it is nothing of the kind. Nothing of a message is ever executed. No list or
    map may have more than `longest` items: a short message could otherwise unfold to a hundred times its size.
    """
    try:
        return _arrays(msgpack.unpackb(message, strict_map_key=True, max_array_len=longest, max_map_len=longest))
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as e:
        raise ValueError(f"no message: {str(e) or type(e).__name__}") from e


def _arrays(value: Any) -> Any:
    if isinstance(value, list):
        return [_arrays(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {"dtype", "shape", "data"}:
        return {key: _arrays(item) for key, item in value.items()}
    shape, data = value["shape"], value["data"]
    if value["dtype"] not in DTYPES or not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > 8:
        raise ValueError(f"an array of {value['dtype']!r} is not taken, only {', '.join(DTYPES)}")
    if not all(type(side) is int and 0 <= side < 1 << 31 for side in shape):
        raise ValueError(f"{shape!r} is no shape")
    return np.frombuffer(data, np.dtype(value["dtype"]).newbyteorder("<")).reshape(shape).astype(value["dtype"])


class Client:
    """A connection to a server, with an observation queue of its own there. `token` where the server wants one."""

    def __init__(self, address: str, token: str | None = None, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout  # [s]
        self._asked = 0
        self._open = ExitStack()
        opened = connect(address, additional_headers=headers, open_timeout=timeout, max_size=None)
        self._connection = self._open.enter_context(opened)

    def reset(self, seed: int | None = None) -> None:
        """Forgets what was seen: call it when an episode begins. `seed` makes it repeatable."""
        self._ask({"op": "reset", "seed": seed})

    def action(self, obs: Mapping[str, Array]) -> Array:
        """The action (Da,) after an observation; call it once per control step."""
        return np.asarray(self._ask({"op": "action", "obs": dict(obs)})["action"])

    def chunk(self, observations: Sequence[Mapping[str, Array]]) -> Array:
        """The next actions (Ta, Da), after observations that are new, oldest first."""
        return np.asarray(self._ask({"op": "chunk", "obs": [dict(obs) for obs in observations]})["action"])

    def describe(self) -> dict[str, Any]:
        """What policy.json says."""
        return dict(self._ask({"op": "describe"})["policy"])

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._asked += 1
        self._connection.send(pack({**message, "id": self._asked}))
        while True:
            answer = self._connection.recv(timeout=self._timeout)
            found = unpack(answer if isinstance(answer, bytes) else answer.encode())
            if found.get("id") == self._asked:  # others are answers that came too late, to what was asked before
                break
        if "error" in found:
            raise ServerError(found["error"])
        return dict(found)

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
