"""The policy that is evaluated or recorded: a checkpoint or an exported folder, and how to run it.

Imports are inside the functions: commands import this file when `ddp` starts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli.errors import CheckpointError, DdpError

if TYPE_CHECKING:
    from ddp_cli.evaluation.rollout import Agent
    from ddp_cli.policy_config import PolicyConfig
    from ddp_cli.tasks import Task


@dataclass(frozen=True)
class PolicySource:
    """A policy and the settings it runs with. `make_agent` can be pickled, for worker processes."""

    folder: Path
    task: Task
    obs: str
    actions: str
    render: str
    step: object
    sampler: str
    inference_steps: int
    engine: str
    device: str
    """The kind of device: cpu, cuda or mps; for exported policies the provider of ONNX Runtime."""
    config: PolicyConfig
    meta: Mapping[str, Any]
    """config.json of the checkpoint, or policy.json of the exported folder."""
    make_agent: Callable[[], Agent]

    def settings(self) -> dict[str, Any]:
        """Everything that determines the policy's actions, as values that JSON can represent. It reads all weights."""
        from ddp_cli.checkpoint_files import CONFIG, MODEL
        from ddp_cli.deploy.runtime import GRAPH_FILE, SPEC_FILE
        from ddp_cli.disk import files_hash

        files = [self.folder / name for name in (CONFIG, MODEL, SPEC_FILE, GRAPH_FILE)]
        return {
            "sha256": files_hash(self.folder, files), "step": self.step, "sampler": self.sampler,
            "inference_steps": self.inference_steps, "engine": self.engine,
        }  # fmt: skip


def is_exported(folder: Path) -> bool:
    """Whether `folder` was written by `ddp export`, in any format but ddp. Files may be missing."""
    from ddp_cli.deploy.runtime import GRAPH_FILE, SPEC_FILE

    return (folder / SPEC_FILE).is_file() or (folder / GRAPH_FILE).is_file()


def resolve_policy(path: Path | None, runs: Path, task: str | None) -> Path:
    """The folder of the policy at `path`: an exported folder, a checkpoint, or a run (its best checkpoint).

    Without a path, the best checkpoint of the newest run in `runs`, of `task` if given. ConfigError if the policy is
    one of another task.
    """
    from ddp_cli.core.checkpoint_lookup import resolve_checkpoint
    from ddp_cli.deploy.exported_folder import read_spec
    from ddp_cli.task_file import check_task_of_policy, task_from_json

    if path is None or not is_exported(path):
        return resolve_checkpoint(path, runs, task)
    if task:
        check_task_of_policy(task_from_json(read_spec(path)["policy"].get("task"), f"'{path}'"), task, path)
    return path


def open_policy_source(
    folder: Path,
    device: str,
    sampler: str | None,
    inference_steps: int | None,
    engine: str,
    provider: str | None = None,
) -> PolicySource:
    """The policy in `folder`, to run on `device` (auto: a GPU if there is one). `provider` of ONNX Runtime is for
    exported policies.

    DdpError if an option is given that an exported policy fixes, ConfigError if one cannot be used with the policy.
    """
    from ddp_cli.core.checkpoint import load_meta
    from ddp_cli.inference.agent import load_agent
    from ddp_cli.inference.device import choose_device
    from ddp_cli.inference.engine import choose_engine
    from ddp_cli.policy_config import PolicyConfig

    if is_exported(folder):
        options = {
            "--sampler": sampler,
            "--inference-steps": inference_steps,
            "--engine": None if engine == "auto" else engine,
            "--device": None if device in {"auto", "cpu"} else device,
        }
        fixed_options = [name for name, value in options.items() if value is not None]
        return _open_exported_source(folder, fixed_options, provider or "cpu")
    if provider:
        raise DdpError(
            f"--provider applies to exported policies, '{folder}' is a checkpoint.", "Use --device, or `ddp export` it."
        )
    meta = load_meta(folder)
    if meta.get("render") is None:
        raise CheckpointError(f"'{folder}' does not say how its images were rendered.", "Use another checkpoint.")
    config = PolicyConfig(**meta["policy"]).with_sampler(sampler, inference_steps)  # type: ignore[arg-type]
    device = str(choose_device(device))
    kind = device.partition(":")[0]
    engine = choose_engine(config, kind, engine)
    make_agent = functools.partial(load_agent, folder, device, config.sampler, config.num_inference_steps, engine)
    return PolicySource(
        folder, config.task, config.obs, config.actions, str(meta["render"]), meta.get("step"), config.sampler,
        config.num_inference_steps, engine, kind, config, meta, make_agent,
    )  # fmt: skip


def _open_exported_source(folder: Path, fixed_options: list[str], provider: str) -> PolicySource:
    from ddp_cli.deploy.exported_folder import open_exported_policy
    from ddp_cli.deploy.exported_policy import exported_config, load_exported_agent

    if fixed_options:
        raise DdpError(f"{fixed_options[0]} cannot be changed: '{folder}' is an exported policy.", "Remove the option.")
    spec = open_exported_policy(folder, provider).spec
    config = exported_config(spec)
    return PolicySource(
        folder, config.task, config.obs, config.actions, str(spec["render"]), spec.get("step"), config.sampler,
        config.num_inference_steps, "exported", provider, config, spec,
        functools.partial(load_exported_agent, folder, provider),
    )  # fmt: skip
