"""The connection to a Ray cluster, and the check that all of its machines compute the same."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.cluster.node import check_software, processor, software
from ddp_cli.errors import ConfigError, DdpError, last_line
from ddp_cli.parallel import run_in_thread

if TYPE_CHECKING:
    from ddp_cli.cluster.ray_cluster import RayCluster

AUTO = "auto"
ANSWER_SECONDS = 4.0  # from 5 s on, Ray prints warnings, for minutes
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
        except Exception as e:  # noqa: BLE001 - any that Ray raises
            raise _connection_error(address, e) from None
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
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    if address == AUTO:
        try:
            address = canonicalize_bootstrap_address_or_die(AUTO)
        except ConnectionError:
            raise DdpError("no Ray cluster is running on this machine.", HEAD_HINT) from None
    if not re.fullmatch(r"([\w.-]+|\[[\da-fA-F:.]+\]):\d{1,5}", address):
        raise ConfigError(f"'{address}' is not the address of a Ray cluster.", "Valid: auto, or HOST:PORT.")
    answer = run_in_thread(lambda: GcsClient(address=address).get_all_node_info(timeout=ANSWER_SECONDS))
    try:
        nodes = answer.result(ANSWER_SECONDS)
    except Exception:  # noqa: BLE001 - nothing listens there, or something else
        raise DdpError(f"no Ray cluster answers at '{address}'.", HEAD_HINT) from None
    if not any(_listens(node.raylet_socket_name) for node in nodes.values()):  # Ray would end the process
        raise DdpError(
            f"this machine is not a node of the Ray cluster at '{address}'.",
            f"`ray start --address {address}` makes it one; with --num-cpus 0 it gives out work without doing any.",
        )
    return address


def _listens(path: str) -> bool:
    """Whether a process of this machine listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(path)
        return True
    return False


def _connection_error(address: str, e: Exception) -> DdpError:
    """The error of Ray as one line."""
    text = " ".join(str(e).split())
    versions = re.findall(r"Ray: (\S+) Python: (\S+)", text)
    if len(versions) == 2:
        (ray_version, python), (own_ray, own_python) = versions
        return ConfigError(
            f"the cluster at '{address}' runs Ray {ray_version} on Python {python}, this machine {own_ray} on "
            f"{own_python}.",
            "Install the same versions on all machines of the cluster.",
        )
    return DdpError(f"cannot join the Ray cluster at '{address}': {last_line(e)}.", "Run `ray status`.")


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
                f"the node {name} of the cluster cannot run ddp: {last_line(e)}.",
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
