"""The connection to a Ray cluster, and the check that all of its machines compute the same."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.cluster.node import check_software, processor, software
from ddp_cli.errors import ConfigError, DdpError, first_line

if TYPE_CHECKING:
    from ddp_cli.cluster.ray_cluster import RayCluster

AUTO = "auto"
CONNECT_SECONDS = 5.0
CHECK_SECONDS = 120.0  # a node starts a process and imports ddp in this time
HEAD_HINT = "Start one with `ray start --head`, or name the address of one: --cluster HOST:PORT."


@contextmanager
def connect(address: str, workers: int | None) -> Iterator[RayCluster]:
    """The processes of the Ray cluster at `address` (HOST:PORT, or auto): one per CPU, `workers` at most.

    This machine must be one of its nodes. DdpError if Ray is missing, or if there is no such cluster; ConfigError for
    an address that is none, and where ddp, Python or a package has another version on a node.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise DdpError("--cluster needs Ray.", 'pip install "ddp-cli[ray]"') from None
    from ray._private import worker as driver

    from ddp_cli.cluster.ray_cluster import RayCluster

    driver._worker_logs_enabled = False  # messages of Ray's daemons, on stdout, where only results go
    address = _find_address(address)
    try:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as e:  # noqa: BLE001 - other versions, no node of the cluster on this machine
            raise DdpError(
                f"cannot join the Ray cluster at '{address}': {first_line(e)}.",
                f"This machine must be one of its nodes: `ray start --address {address}`.",
            ) from None
        cpus = _check_nodes()
        if not cpus:
            raise DdpError(f"the Ray cluster at '{address}' has no CPUs.", "Add a node with `ray start`.")
        cluster = RayCluster(min(cpus, workers or cpus))
        console.note(f"Ray cluster at {address}: {cluster.workers} workers")
        yield cluster
    finally:
        ray.shutdown()


def _find_address(address: str) -> str:
    """HOST:PORT of a cluster that answers."""
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    if address == AUTO:
        from ray._private.services import canonicalize_bootstrap_address_or_die

        try:
            address = canonicalize_bootstrap_address_or_die(AUTO)
        except ConnectionError:
            raise DdpError("no Ray cluster is running on this machine.", HEAD_HINT) from None
    match = re.fullmatch(r"(?P<host>[\w.-]+|\[[\da-fA-F:.]+\]):(?P<port>\d{1,5})", address)
    if match is None:
        raise ConfigError(f"'{address}' is not the address of a Ray cluster.", "Valid: auto, or HOST:PORT.")
    try:  # Ray itself would wait for a minute and end the process
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), CONNECT_SECONDS).close()
    except (OSError, OverflowError):
        raise DdpError(f"no Ray cluster answers at '{address}'.", HEAD_HINT) from None
    return address


def _check_nodes() -> int:
    """The CPUs of all nodes, each of which must be able to run what this machine runs, with the same result."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    check = ray.remote(num_cpus=0, max_retries=0)(_describe_node)
    required = software()
    refs: list[Any] = []
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        refs.append(check.options(scheduling_strategy=on_node).remote(required))
    processors = {processor(): "this machine"}
    for name, ref in zip((node["NodeManagerAddress"] for node in nodes), refs, strict=True):
        try:
            model, error = ray.get(ref, timeout=CHECK_SECONDS)
        except Exception as e:  # noqa: BLE001 - ddp cannot be imported, or the node ended
            raise DdpError(
                f"the node {name} of the cluster cannot run ddp: {first_line(e)}.",
                "Install the same ddp on all machines of the cluster.",
            ) from None
        if error is not None:
            raise error
        processors.setdefault(model, name)
    if len(processors) > 1:
        kinds = ", ".join(f"{model} ({name})" for model, name in processors.items())
        console.warn(f"processors differ: {kinds}. They round differently, so some episodes may end differently.")
    return sum(int(node["Resources"]["CPU"]) for node in nodes)


def _describe_node(required: dict[str, str]) -> tuple[str, ConfigError | None]:
    """The processor of a node, and what is wrong with its software."""
    try:
        check_software(required)
    except ConfigError as e:
        return processor(), e
    return processor(), None
