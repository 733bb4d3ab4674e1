"""A policy in processes of its own: the same actions, also after a process was killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children
from pathlib import Path

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


def test_a_policy_that_cannot_be_started_again_is_an_error(in_processes: PolicyInProcesses) -> None:
    obs = observations(in_processes, 0)
    in_processes.act(obs)
    in_processes._settings = (in_processes.folder / "missing", 1, "cpu")
    for child in active_children():
        child.kill()
        child.join(10)
    with pytest.raises(PolicyError, match="crashed twice"):
        in_processes.act(obs)


def test_errors_of_the_graph_are_raised(in_processes: PolicyInProcesses) -> None:
    with pytest.raises(PolicyError, match="noise"):
        in_processes.run_graph({})
