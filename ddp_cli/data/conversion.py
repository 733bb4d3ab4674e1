"""Raw demos to the store: every recorded state is set in the simulator and looked at."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.demos import Demo, DemoFile
from ddp_cli.data.store import StoreWriter
from ddp_cli.errors import ConfigError, DdpError, WorkerError
from ddp_cli.parallel import ordered_map
from ddp_cli.sim.renderer import check_profile
from ddp_cli.sim.simulator import Simulator, check_actions, versions
from ddp_cli.tasks import ACTION_DIM, ACTIONS, Task, check_obs

Episode = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Converted:
    """What `convert` did."""

    episodes: int
    frames: int
    megabytes: float


def convert(
    source: Path,
    out: Path,
    render: str,
    workers: int,
    progress: Callable[[int, int], None],
    zarr_format: int = 3,
    actions: str = "delta",
    task: Task | None = None,
    obs: str = "image",
) -> Converted:
    """Converts the raw demos in `source` to the store `out`, replacing what is there. `task` is by default
    the built-in one of their environment. With `obs` "state" nothing is drawn.

    `actions` "absolute" stores the goals that the recorded delta actions set, each computed at the
    recorded state, not along a replay that drifts.

    Memory holds a few episodes at a time, whatever the number of demos. An interrupted call goes on
    where it ended; any error removes what was written. `progress(frames done, frames in all)`.
    """
    check_profile(render)
    check_actions(actions)
    check_obs(obs)
    with DemoFile(source, task) as demos:
        lengths = demos.lengths()
        for demo in demos:  # find bad ones before spending an hour on the good ones
            del demo
        attributes = {
            "render": render,
            "obs": obs,
            "env_args": demos.env_args,
            "versions": versions(),
            "action": ACTIONS[actions],
            "source": {"file": source.name, "sha256": demos.sha256(), "demos": demos.names},
        }
        writer = StoreWriter(out, demos.task, lengths, attributes, zarr_format)
        try:
            done = sum(lengths[: writer.episodes])
            progress(done, sum(lengths))
            rest = (demos.read(name) for name in demos.names[writer.episodes :])
            with closing(
                ordered_map(functools.partial(_looker, demos.task, render, actions, obs), rest, workers)
            ) as episodes:
                for episode in episodes:
                    writer.append(episode)
                    done += len(episode["action"])
                    progress(done, sum(lengths))
        except WorkerError:
            raise  # run again: the finished episodes are kept
        except (DdpError, OSError):
            writer.discard()
            raise
        writer.finish()
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return Converted(len(lengths), sum(lengths), size / 1e6)


def _looker(task: Task, render: str, actions: str, obs: str) -> Callable[[Demo], Episode]:
    sim = Simulator(task, render)
    if not task.built_in:
        check_recalled(sim)
    return functools.partial(look, sim, actions == "absolute", obs)


def check_recalled(sim: Simulator) -> None:
    """ConfigError for observables that setting a state does not bring back (accelerations, for one): the store
    would hold others than a rollout sees.
    """
    sim.reset(0)
    rng = np.random.default_rng(0)
    for action in rng.uniform(-1, 1, (5, ACTION_DIM)):
        sim.step(action)
    state, seen = sim.state(), sim.low_dim()
    for action in rng.uniform(-1, 1, (5, ACTION_DIM)):
        sim.step(action)
    sim.show_state(state)
    lost = [key for key, value in sim.low_dim().items() if not np.array_equal(value, seen[key])]
    if lost:
        raise ConfigError(
            f"task '{sim.task.name}': '{lost[0]}' does not follow from the recorded state alone, so it cannot be "
            "converted.",
            "Leave it out of the task.",
        )


def look(sim: Simulator, absolute: bool, obs: str, demo: Demo) -> Episode:
    """What the robot saw before each action of `demo`: (n, ...) per key, and the actions to learn (n, 7 or 10)."""
    if sim.task.model_varies and demo.xml:
        sim.load_xml(demo.xml)
    frames: list[Episode] = []
    for state, action in zip(demo.states, demo.lesson, strict=True):
        if absolute:
            sim.set_state(state)  # the goal is made by controllers that know where the arm is
        else:
            sim.show_state(state)
        stored = sim.goal(action) if absolute else action
        pictures = {key: sim.image(key) for key in sim.task.images(obs)}
        frames.append(pictures | sim.low_dim() | {"action": stored.astype(np.float32)})
    return {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
