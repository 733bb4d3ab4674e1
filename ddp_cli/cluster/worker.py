"""What a worker process of a cluster does: it makes a function once, and calls it on items."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

from ddp_cli.cluster.node import check_software
from ddp_cli.cluster.packaging import Package, call_unpacked
from ddp_cli.parallel import sendable_error


class Work(NamedTuple):
    """What all items of a map have in common."""

    key: str
    make_function: Package
    software: dict[str, str]
    """Versions on the machine where the command runs."""


class _Made(NamedTuple):
    key: str
    function: Callable[[Any], Any]


_made: _Made | None = None


def call(work: Work, item: bytes) -> bytes:
    """Call the function of `work` on a pickled item: its result and None, or None and its exception, pickled.

    Pickled here, as between processes of one machine: arrays that Ray itself transfers are read-only.
    """
    outcome: tuple[Any, BaseException | None]
    try:
        outcome = (_function(work)(pickle.loads(item)), None)  # noqa: S301 - sent by the command that this serves
    except BaseException as e:  # noqa: BLE001 - raised by the command
        outcome = (None, sendable_error(e))
    return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)


def _function(work: Work) -> Callable[[Any], Any]:
    global _made  # noqa: PLW0603 - a process keeps what it has made
    if _made is None or _made.key != work.key:
        _made = None  # release a simulator before the next one is made
        check_software(work.software)
        os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa renders in the calling thread
        _made = _Made(work.key, call_unpacked(work.make_function))
    return _made.function
