"""Does a recording mean here what it meant where it was made? Its actions are executed, and its pictures drawn.

Executed in chunks: from recorded states, every so often, the actions that a policy would execute before it looks
again. Where the hand ends is compared with the recording. That tells what training on it is worth: other
controllers, frames or scales show at once, while a whole episode executed blindly drifts away over many contacts
even where all is well. The whole episode is executed as well, and what came of it is said, not judged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.demo_file import Demo
from ddp_cli.data.observations import RenderSpec, as_goals, load_demo_model
from ddp_cli.data.replay_report import CHUNK, ReplayResult
from ddp_cli.rotation import rotation_angle
from ddp_cli.sim.simulator import Array, Simulator

EVERY = 25  # steps between the states that chunks begin at
Pose = tuple[Array, Array, float]
"""Of the hand: position [m], orientation, gap between its fingers [m]."""
SAME = 1e-3  # [m], parts of a quaternion


def check_demo(sim: Simulator, how: RenderSpec, executor: Simulator, demo: Demo) -> ReplayResult:
    """Executes `demo` in `executor`, whose convention is the stored one; compares with its states in `sim`."""
    model = load_demo_model(sim, demo)
    recorded, succeeds = [], False
    for state in demo.states:
        sim.show_state(state)
        recorded.append(_pose(sim))
        succeeds = succeeds or sim.success()
    actions = _to_execute(sim, how, demo)
    if executor is not sim:
        load_demo_model(executor, demo)
    chunks = []
    for begin in range(0, max(1, len(actions) - CHUNK), EVERY):
        end = min(begin + CHUNK, len(actions) - 1)
        executor.set_state(demo.states[begin], actions[:begin, -1])
        for action in actions[begin:end]:
            executor.step(action)
        chunks.append(_apart(_pose(executor), recorded[end]))
    executor.set_state(demo.states[0])
    drift, replayed = [(0.0, 0.0, 0.0)], False
    for action, pose in zip(actions, recorded, strict=True):
        drift.append(_apart(_pose(executor), pose))
        replayed = executor.step(action) or replayed
    worst = np.max(drift, axis=0)
    psnr, differing = _compare(sim, demo)
    return ReplayResult(demo.name, model, succeeds, replayed, float(worst[0]), float(worst[1]), chunks, psnr, differing)


def _to_execute(sim: Simulator, how: RenderSpec, demo: Demo) -> Array:
    """What was executed (not what was intended), by the convention to be stored."""
    if how.given == "absolute":
        return as_goals(demo.actions)
    if how.actions == "delta":
        return demo.actions
    goals = []
    for state, action in zip(demo.states, demo.actions, strict=True):
        sim.set_state(state)
        goals.append(sim.goal(action))
    return np.stack(goals)


def _pose(sim: Simulator) -> Pose:
    return *sim.hand(), sim.fingers()[0]


def _apart(one: Pose, other: Pose) -> tuple[float, float, float]:
    """Between two hands [mm], [deg], and between the gaps of their fingers [mm]."""
    return (
        float(np.linalg.norm(one[0] - other[0])) * 1e3,
        float(np.degrees(rotation_angle(one[1], other[1]))),
        abs(one[2] - other[2]) * 1e3,
    )


def _compare(sim: Simulator, demo: Demo) -> tuple[float | None, list[str]]:
    """Recorded observations against those of three states: the worst PSNR of a picture, and other keys that differ."""
    found: list[float] = []
    differing: set[str] = set()
    for step in sorted({0, len(demo.states) // 2, len(demo.states) - 1}):
        sim.show_state(demo.states[step])
        found += [psnr(sim.image(key), demo.obs[key][step]) for key in sim.task.cameras if key in demo.obs]
        for key, value in sim.low_dim().items():
            if key in demo.obs and not np.allclose(demo.obs[key][step], value, atol=SAME):
                differing.add(key)
    return (min(found) if found else None), sorted(differing)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures [dB], at most 99."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return 99.0 if error < 1e-5 else min(99.0, 10 * np.log10(255**2 / error))
