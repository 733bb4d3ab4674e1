"""What `ddp train` sets up before a new run starts: the store, the configuration, the run folder."""

from __future__ import annotations

import functools
import shlex
import sys
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.choices import Obs, Preset, Size
from ddp_cli.commands import options
from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.locks import lock_output

if TYPE_CHECKING:
    import torch

    from ddp_cli.data.store import Store
    from ddp_cli.tasks import Task
    from ddp_cli.train_config import TrainConfig
    from ddp_cli.training.distributed import Processes
    from ddp_cli.training.run import Run

COLLECTED_EPISODES = 100  # half a minute for lift, a minute for square on two CPU cores


@dataclass(frozen=True)
class TrainOptions:
    """The options of `ddp train` that describe a new run."""

    task: str
    obs: Obs
    preset: Preset | None
    size: Size | None
    config: Path | None
    settings: list[str]
    """KEY=VALUE, as given with --set."""
    overrides: dict[str, Any]
    """Settings that have an option of their own (steps, seed, ...)."""
    data: Path | None
    allow_unverified: bool
    runs: Path
    name: str | None
    init_from: Path | None


@dataclass(frozen=True)
class PlannedRun:
    """A run that can be started or resumed, by `start(processes=...)` in each of the processes that train it."""

    config: TrainConfig
    start: Callable[..., Run]


def plan_new_run(train_options: TrainOptions, device: torch.device, processes: Processes) -> PlannedRun:
    """A new run, after all settings were validated and the store was found or made."""
    from ddp_cli.core.checkpoint_lookup import resolve_checkpoint
    from ddp_cli.data.store import Store, resolve_task
    from ddp_cli.json_file import read_json
    from ddp_cli.presets import default_preset, parse_settings, train_config
    from ddp_cli.training.run import create_run
    from ddp_cli.training.run_folder import default_run_name

    name = train_options.name
    if name is not None and (Path(name).name != name or name in ("", "..") or not _is_text(name)):
        raise ConfigError(f"--name {name!a} is not a folder name.", "Leave out '/', '..' and control characters.")
    obs, data, runs = train_options.obs, train_options.data, train_options.runs
    values = parse_settings(train_options.settings) | train_options.overrides
    size = train_options.size
    preset = train_options.preset or default_preset(device.type, size)
    file_values = read_json(train_options.config) if train_options.config else None
    task = resolve_task(train_options.task, data or options.existing_store(train_options.task, obs))
    train_config(task, obs, preset, file_values, values, size)  # reject invalid settings before a store is made
    initial_weights = resolve_checkpoint(train_options.init_from, runs) if train_options.init_from else None
    store = Store(data or processes.run_on_main(lambda: find_or_make_store(task, obs)))
    _check_verified(store, train_options.allow_unverified)
    file_settings = {**(file_values or {}), **(file_values or {}).get("policy", {})}
    values |= _settings_of_store(store, {*values, *file_settings})
    config = train_config(task, obs, preset, file_values, values, size)
    folder = runs / task.name / (name or default_run_name())
    for key, camera in store.for_task(config.policy.task).resized.items():
        stored = store.task.schema.cameras[key]
        console.note(
            f"{key}: images of {stored.height}x{stored.width} are resized to {camera.height}x{camera.width} "
            "(another size: --set image_size=HxW; image_size=recorded keeps them)"
        )
    start = functools.partial(
        create_run, folder, config, store, device, console.note, init_from=initial_weights, numbered=name is None,
        command=shlex.join(["ddp", *sys.argv[1:]]),
    )  # fmt: skip
    return PlannedRun(config, start)


def _settings_of_store(store: Store, chosen: Collection[str]) -> dict[str, Any]:
    """The settings that follow from `store`, without those that the user has `chosen`."""
    from ddp_cli.core.normalizer import MIN_RANGE
    from ddp_cli.training.action_range import find_unclippable, find_unlearnable

    if names := find_unlearnable(store):
        console.warn(
            f"{', '.join(names)}: the recorded values differ by less than {MIN_RANGE:g} and are learned as a constant. "
            "Record them in a smaller unit."
        )
    settings: dict[str, Any] = {}
    if "actions" not in chosen:
        settings["actions"] = store.attrs["action"]["convention"]
    if "clip_sample" not in chosen and (names := find_unclippable(store)):
        console.note(f"clip_sample=false: {', '.join(names)} reach beyond -1 to 1, to which samples would be clipped")
        settings["clip_sample"] = False
    return settings


def _is_text(name: str) -> bool:
    """Whether a name holds no control characters, and no bytes that are not UTF-8, which Python reads as surrogates."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def plan_resumed_run(
    folder: Path, data: Path | None, task: str, device: torch.device, processes: Processes
) -> PlannedRun:
    """The run in `folder`, of `task`; `data` is the path of its store, if that was moved."""
    from ddp_cli.task_file import check_same_task
    from ddp_cli.training.resume import resume_run
    from ddp_cli.training.run_folder import read_run_config

    config = processes.run_on_main(lambda: read_run_config(folder, data).train)
    check_same_task(config.policy.task, task, folder)
    return PlannedRun(config, functools.partial(resume_run, folder, device, console.warn, console.note, data=data))


def report_new_run(run: Run, size: Size | None) -> None:
    """Print what is trained; a warning if some recorded actions are beyond what initial weights can predict."""
    from ddp_cli.training.initial_weights import describe_unreachable_actions

    trainer = run.trainer
    rate = f" (measured: {run.rate:.1f} steps/s)" if run.rate else ""
    count = trainer.processes.world_size
    shared = f", {count} processes" if count > 1 else ""
    console.note(
        f"{run.folder}: preset {trainer.config.preset}{f', size {size}' if size else ''}, {trainer.config.policy.obs} "
        f"observations, {trainer.total} steps of batch size {trainer.config.batch_size}{rate}, on {trainer.device}"
        f"{shared}"
    )
    if "init_from" in run.meta and (unreachable := describe_unreachable_actions(trainer)):
        console.warn(f"{unreachable}. Without --init-from, the range is that of the demonstrations.")


def report_data(run: Run) -> None:
    """Print how many demonstrations and windows are trained on; a warning if some demonstrations are not used."""
    data = run.trainer.data
    console.note(f"data: {data.describe()}")
    unused = data.n_episodes - data.n_used
    if unused:
        console.warn(
            f"{unused} of {data.n_episodes} demonstrations are not used: they have fewer than {data.min_steps} steps, "
            f"which a window of horizon {run.trainer.config.policy.horizon} needs. Train with a shorter horizon, or "
            "with --set pad_short=true."
        )


def _check_verified(store: Store, allow_unverified: bool) -> None:
    """DdpError if the store failed its replay check."""
    from ddp_cli.data.check_summary import check_summary

    if store.check["result"] == "failed" and not allow_unverified:
        raise DdpError(
            f"'{store.path}' failed its replay check: {store.check['why']}.",
            "A policy would learn actions that do something else here. Add --allow-unverified to train anyway.",
        )
    console.note(f"{store.path}: check {check_summary(store.check)}")


def find_or_make_store(task: Task, obs: str) -> Path:
    """The default store of `task`. Without one the sample demonstrations are converted; outside of a source checkout,
    where there are none, demonstrations are collected first.
    """
    from ddp_cli.commands.convert import run_conversion
    from ddp_cli.data.conversion_plan import ConvertOptions

    store = options.existing_store(task.name, obs)
    if store.exists():
        return store
    with lock_output(store, wait=console.note):
        if not store.exists():  # another `ddp train` may have made it
            demos = options.sample_demos(task.name) or _collect_demos(task, store)
            console.note(f"no store '{store}': converting {demos} first")
            result = run_conversion(demos, store, ConvertOptions(obs), task=task)
            console.note(f"{store}: {result.episodes} episodes, {result.frames} steps")
    return store


def _collect_demos(task: Task, store: Path) -> Path:
    """Demonstrations collected by the scripted policy of `task`, in data/TASK.hdf5."""
    from ddp_cli.commands.collect import run_collection
    from ddp_cli.sim.scripted_policies import has_scripted_policy

    demos = options.DATA / f"{task.name}.hdf5"
    if demos.exists():
        return demos
    if not has_scripted_policy(task):
        raise DdpError(
            f"no store '{store}', and no demonstrations of '{task.name}' to make one from.",
            "Name a store with --data, or make one with `ddp convert DEMOS.hdf5`.",
        )
    console.note(
        f"no store and no sample demonstrations here: collecting {COLLECTED_EPISODES} demonstrations of {task.name} "
        f"in '{demos}' with `ddp collect` (about a minute)"
    )
    with lock_output(demos, wait=console.note):
        if not demos.exists():
            run_collection(task, COLLECTED_EPISODES, demos)
    return demos
