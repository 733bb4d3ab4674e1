"""A policy in processes of its own: the same actions, also after a process was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe, active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_observation

from ddp_cli.deploy import inference_processes
from ddp_cli.deploy.inference_processes import PolicyInProcesses
from ddp_cli.deploy.runtime import Policy, PolicyError


@pytest.fixture
def in_processes(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PolicyInProcesses]:
    monkeypatch.setattr(inference_processes, "default_workers", lambda: 2)
    before = set(active_children())
    yield PolicyInProcesses(policy_folder)
    for process in set(active_children()) - before:
        process.kill()
        process.join()


def observations(policy: Policy, seed: int) -> dict[str, np.ndarray]:
    steps = [random_observation(policy, seed + i) for i in range(policy.n_obs_steps)]
    return {key: np.stack([step[key] for step in steps]) for key in policy.obs}


def test_actions_are_those_of_the_policy_in_this_process(policy_folder: Path, in_processes: PolicyInProcesses) -> None:
    policy = Policy.load(policy_folder)

    def act(of: Policy, seed: int) -> np.ndarray:
        return of.act(observations(policy, seed), policy.sample_noise(np.random.default_rng(seed)))

    with ThreadPoolExecutor(8) as pool:
        actions = list(pool.map(lambda seed: act(in_processes, seed), range(24)))
    for seed, action in enumerate(actions):
        np.testing.assert_array_equal(action, act(policy, seed))


def test_a_killed_process_is_replaced(policy_folder: Path, in_processes: PolicyInProcesses) -> None:
    obs = observations(in_processes, 0)
    noise = in_processes.sample_noise(np.random.default_rng(0))
    expected = [in_processes.act(obs, noise) for _ in range(4)][-1]  # each process has computed
    children = [child for child in active_children() if child.pid]
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
        child.join(10)
    for _ in range(4):
        np.testing.assert_array_equal(in_processes.act(obs, noise), expected)


def test_a_process_is_replaced_although_the_fork_server_was_killed(
    in_processes: PolicyInProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_process, attempts = inference_processes.start_process, []

    def start_after_error(*args: Any) -> Any:
        attempts.append(args)
        if len(attempts) == 1:
            raise EOFError("unexpected EOF")
        return start_process(*args)

    obs = observations(in_processes, 0)
    in_processes.act(obs)
    monkeypatch.setattr(inference_processes, "start_process", start_after_error)
    for child in active_children():
        child.kill()
        child.join(10)
    in_processes.act(obs)
    assert len(attempts) == 2
    for _ in range(2):
        connection = in_processes._idle.get()
        connection.close()
        in_processes._idle.put(connection)
    monkeypatch.setattr(inference_processes, "start_process", lambda *_: None)  # nobody answers
    with pytest.raises(PolicyError, match="crashed 3 times"):
        in_processes.act(obs)
    assert in_processes._idle.qsize() == 2, "the next request tries again"


def test_a_policy_whose_folder_was_removed_is_named(in_processes: PolicyInProcesses, policy_folder: Path) -> None:
    obs = observations(in_processes, 0)
    in_processes.act(obs)
    settings, in_processes._settings = in_processes._settings, (in_processes.folder / "removed", 1, "cpu")
    _kill_children()
    for _ in range(3):
        with pytest.raises(PolicyError, match="removed' holds no exported policy"):
            in_processes.act(obs)
    in_processes._settings = settings
    in_processes.act(obs)


def test_a_policy_that_was_exchanged_is_not_mixed_with_the_one_before(
    in_processes: PolicyInProcesses, policy_folder: Path, tmp_path: Path
) -> None:
    obs = observations(in_processes, 0)
    other = Path(shutil.copytree(policy_folder, tmp_path / "other"))
    spec = json.loads((other / "policy.json").read_text())
    (other / "policy.json").write_text(json.dumps({**spec, "step": -1}))
    in_processes._settings = (other, 1, "cpu")
    _kill_children()
    with pytest.raises(PolicyError, match="other' holds another policy than at the start"):
        in_processes.act(obs)


def _kill_children() -> None:
    for child in active_children():
        child.kill()
        child.join(10)


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="needs schedulers")
def test_a_process_has_normal_priority_also_if_it_is_replaced_in_realtime(
    policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda _pid, scheduler, _parameters: calls.append(scheduler))
    monkeypatch.setattr(os, "nice", lambda _: 0)
    connection, other = Pipe()
    connection.close()
    inference_processes._run_policy(other, Policy.load(policy_folder).spec, policy_folder, 1, "cpu")
    assert calls == [os.SCHED_OTHER]


def test_errors_of_the_graph_are_raised(in_processes: PolicyInProcesses) -> None:
    with pytest.raises(PolicyError, match="noise"):
        in_processes.run_graph({})
