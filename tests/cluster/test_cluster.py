"""A Ray cluster of two nodes on this machine: the same results as without one, also when a node is killed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cluster_functions import make_process_names, make_reader, make_refuser, make_square
from conftest import ddp, ok_json, refused
from ray.cluster_utils import Cluster

from ddp_cli.cluster import connection
from ddp_cli.cluster.connection import connect
from ddp_cli.cluster.ray_cluster import RayCluster
from ddp_cli.data.collection import collect
from ddp_cli.errors import DataError, WorkerError
from ddp_cli.parallel import FailedItem, fault_tolerant_map, ordered_map
from ddp_cli.tasks import TASKS, get_task

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one CPU each, whose processes can import what is beside these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes
        nodes.shutdown()


@pytest.fixture(scope="module")
def workers(cluster: Cluster) -> Iterator[RayCluster]:
    """One connection, whose processes go from test to test. Commands of this process cannot open another one."""
    with connect(cluster.address, None) as processes:
        yield processes


def test_collect_writes_the_same_file(cluster: Cluster, lift_demos: Path, tmp_path: Path) -> None:
    result = ok_json(
        "collect", "--task", "lift", "-n", 2, "--out", tmp_path / "lift.hdf5", "--cluster", cluster.address
    )
    assert result["demos"] == 2
    assert (tmp_path / "lift.hdf5").read_bytes() == lift_demos.read_bytes()


def test_convert_writes_the_same_store(cluster: Cluster, lift_demos: Path, lift_zarr: Path, tmp_path: Path) -> None:
    ok_json("convert", lift_demos, "--out", tmp_path / "lift.zarr", "--cluster", cluster.address)
    assert files(tmp_path / "lift.zarr") == files(lift_zarr)


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_eval_gives_the_same_episodes(cluster: Cluster, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "lift", dataclasses.replace(TASKS["lift"], horizon=10))
    command = ("eval", trained / "lift/tiny", "-n", 2, "--inference-steps", 1)
    reports = [ok_json(*command, "--workers", 1), ok_json(*command, "--cluster", cluster.address)]
    for report in reports:
        for timed in [report, *report["episodes"]]:
            timed.pop("chunk_ms")
        report.pop("seconds")
    assert reports[0] == reports[1]
    assert len(reports[0]["episodes"]) == 2


def test_a_killed_process_costs_its_item_one_retry(workers: RayCluster, tmp_path: Path) -> None:
    make = functools.partial(make_square, str(tmp_path), {1: 1, 4: 2})
    results = list(fault_tolerant_map(make, range(8), workers))
    assert [f"failed {r.item}" if isinstance(r, FailedItem) else r for r in results] == [
        0, 1, 4, 9, "failed 4", 25, 36, 49,
    ]  # fmt: skip


def test_an_item_that_kills_two_processes_is_an_error_of_an_ordered_map(workers: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="worker process crashed"):
        list(ordered_map(functools.partial(make_square, str(tmp_path), {0: 2}), range(2), workers))


def test_an_error_of_the_function_arrives_as_it_is(workers: RayCluster) -> None:
    with pytest.raises(DataError) as error:
        list(ordered_map(make_refuser, range(3), workers))
    assert (type(error.value), error.value.message, error.value.hint) == (
        DataError, "item 0 is wrong.", "Choose another.",
    )  # fmt: skip


def test_the_number_of_processes_is_limited(workers: RayCluster) -> None:
    assert workers.workers == 2
    assert len(set(ordered_map(make_process_names, [0.5] * 6, workers))) == 2
    assert len(set(ordered_map(make_process_names, [0.1] * 4, workers.at_most(1)))) == 1


def test_what_runs_is_stopped_and_the_next_map_goes_on(workers: RayCluster) -> None:
    with closing(ordered_map(make_process_names, itertools.chain([0.0], itertools.repeat(60.0)), workers)) as results:
        next(results)
    started = time.monotonic()
    assert len(list(ordered_map(make_process_names, [0.0] * 4, workers))) == 4
    assert time.monotonic() - started < 50.0  # a process that sleeps for 60 s is not waited for


def test_files_go_by_path_where_they_can_be_seen_and_else_through_the_object_store(
    workers: RayCluster, tmp_path: Path
) -> None:
    folder = tmp_path / "policy"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights.bin").write_bytes(b"weights")
    make = functools.partial(make_reader, folder)
    assert list(ordered_map(make, ["weights.bin"], workers)) == [(folder, b"weights")]

    def names_after(change: Callable[[], Any]) -> Iterator[str]:
        change()  # when the function has been packaged, and no process has made it
        yield "weights.bin"

    for change in (lambda: (folder / "sub" / "weights.bin").write_bytes(b"others!"), lambda: shutil.rmtree(folder)):
        ((where, content),) = ordered_map(make, names_after(change), workers)
        assert (where != folder, where.name, content) == (True, "policy", b"weights")
        assert not where.exists()
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        (folder / "sub" / "weights.bin").write_bytes(b"weights")


def test_addresses_without_a_cluster_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "Valid: auto, or HOST:PORT." in refused(ddp("collect", "--cluster", "ray://node:10001"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        for arguments in (("--cluster", address), ("--cluster", "auto")):
            monkeypatch.setenv("RAY_ADDRESS", address)
            error = refused(ddp("collect", *arguments))
            assert f"no Ray cluster answers at '{address}'" in error
            assert "ray start --head" in error


def test_a_machine_outside_of_the_cluster_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "_listens", lambda path: False)
    error = refused(ddp("collect", "--cluster", cluster.address))
    assert f"not a node of the Ray cluster at '{cluster.address}'. `ray start --address" in error


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'pip install "ddp-cli[ray]"' in refused(ddp("collect", "--cluster", "auto"))


def test_what_a_cluster_does_not_do_is_refused(trained: Path, lift_zarr: Path) -> None:
    assert "--device cuda does not go with --cluster" in refused(
        ddp("eval", trained / "lift/tiny", "--device", "cuda", "--cluster", "auto")
    )
    assert "--cluster does not apply" in refused(ddp("convert", lift_zarr, "--cluster", "auto"))


def test_a_node_with_other_code_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Not in the current folder, whose files nodes on the same disk import."""
    changed = tmp_path / "changed" / "ddp_cli"
    shutil.copytree(ROOT / "ddp_cli", changed, ignore=shutil.ignore_patterns("__pycache__"))
    (changed / "rotation.py").open("a").write("# changed\n")
    done = subprocess.run(
        [sys.executable, "-m", "ddp_cli", "collect", "-n", "1", "--out", "a.hdf5", "--cluster", cluster.address],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(changed.parent)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "has ddp 0.1.0 (" in done.stderr
    assert "Install the same versions on all machines of the cluster." in done.stderr


def test_a_killed_node_changes_nothing(
    cluster: Cluster, workers: RayCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last test of this file: the cluster has one node from here on."""
    expected, out = tmp_path / "expected.hdf5", tmp_path / "lift.hdf5"
    collect(get_task("lift"), 6, expected, 1000, 1, lambda *_: None)
    (node,) = cluster.worker_nodes

    def kill_node(demos: int, _attempts: int, _failures: int) -> None:
        if demos == 2 and cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)

    result = collect(get_task("lift"), 6, out, 1000, workers, kill_node)
    assert not cluster.worker_nodes
    assert result.demos == 6
    assert out.read_bytes() == expected.read_bytes()
    assert capfd.readouterr().out == ""
