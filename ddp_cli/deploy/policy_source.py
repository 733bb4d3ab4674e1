"""What is evaluated or filmed: a checkpoint, or an exported folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_cli.errors import DdpError

if TYPE_CHECKING:
    from ddp_cli.evaluation.rollout import Agent
    from ddp_cli.tasks import Task


@dataclass(frozen=True)
class PolicySource:
    """A policy, and how it is run. `make` can be sent to other processes."""

    folder: Path
    task: Task
    obs: str
    actions: str
    render: str
    step: object
    sampler: str
    inference_steps: int
    engine: str
    make: Callable[[], Agent]


def is_exported(folder: Path) -> bool:
    """Whether `folder` is a policy that `ddp export` wrote as ONNX."""
    from ddp_cli.deploy.exported_policy import is_exported

    return is_exported(folder)


def find(path: Path | None, runs: Path, task: str | None) -> Path:
    """The folder that the user named, or the newest run's best checkpoint."""
    from ddp_cli.core.checkpoint import resolve_checkpoint

    return path if path is not None and is_exported(path) else resolve_checkpoint(path, runs, task)


def subject(folder: Path, device: str, sampler: str | None, inference_steps: int | None, engine: str) -> PolicySource:
    """The policy in `folder`, on `device` (auto: a GPU where there is one)."""
    from ddp_cli.config import PolicyConfig
    from ddp_cli.core.checkpoint import load_meta
    from ddp_cli.inference.agent import choose_engine, load_agent
    from ddp_cli.inference.device import choose_device

    if is_exported(folder):
        said = {"--sampler": sampler, "--inference-steps": inference_steps}
        said |= {
            "--engine": engine if engine != "auto" else None,
            "--device": None if device in {"auto", "cpu"} else device,
        }
        return _exported(folder, [name for name, value in said.items() if value is not None])
    meta = load_meta(folder)
    used = PolicyConfig(**meta["policy"]).with_sampler(sampler, inference_steps)  # type: ignore[arg-type]
    where = str(choose_device(device))
    engine = choose_engine(used, where.partition(":")[0], engine)
    make = functools.partial(load_agent, folder, where, used.sampler, used.num_inference_steps, engine)
    return PolicySource(
        folder, used.task, used.obs, used.actions, str(meta["render"]), meta.get("step"), used.sampler,
        used.num_inference_steps, engine, make,
    )  # fmt: skip


def _exported(folder: Path, said: list[str]) -> PolicySource:
    from ddp_cli.deploy.exported_policy import config_of, load_exported, open_policy

    if said:
        raise DdpError(f"'{folder}' is an exported policy, for which {said[0]} is decided.", "Leave it out.")
    policy = open_policy(folder)
    used, spec = config_of(policy), policy.spec
    return PolicySource(
        folder, used.task, used.obs, used.actions, str(spec["render"]), spec.get("step"), used.sampler,
        used.num_inference_steps, "exported", functools.partial(load_exported, folder),
    )  # fmt: skip
