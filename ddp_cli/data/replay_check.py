"""Checks a recording by replay: do its actions have the recorded effect in this simulator?

Actions are replayed in chunks, from recorded states: as many as a policy executes between observations. The
end-effector pose after each chunk is compared with the recorded one. This shows what training on the demos is worth:
other controllers, frames or scales fail at once, whereas a replay of a whole episode drifts away over many contacts
even if all is well.

Of some demos, the chunks cover every action, and the whole episode is replayed, too; its outcome is reported, not
judged. Of all others, a third of the chunks is replayed: the last one, those at regular intervals, and those with the
most motion, where wrong actions show most. If one of them ends beyond the limits, so are all.

robosuite's collectors restore a state before the first action, but not the controller, whose goal is still that of
another initial pose: the first actions have another effect than when they are replayed. Up to robosuite 1.4 this lasts
until the first rotation, since actions without one keep the goal's orientation. Such a start-up effect is told from
drift by the rest of the demo: see `_find_startup_effect`.

Some controllers remember what happened before a chunk, and an arm that is pressed against something, or far from its
first posture, moves in another way after its state was restored. Where a chunk is beyond the limits, but the replay of
the whole episode is within them at its end, the latter counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddp_cli.data.actions import axis_angle_to_rotation_6d
from ddp_cli.data.demo import Demo
from ddp_cli.data.observations import RenderSpec, load_demo_model
from ddp_cli.rotation import rotation_angle
from ddp_cli.sim.simulator import Array, Simulator

CHUNK_STEPS = 8  # actions that are replayed from a recorded state
SAMPLE_INTERVAL = 3  # chunks, of demos that are not replayed as a whole
MAX_POSITION_ERROR = 5.0  # [mm], of the end effector after a chunk
MAX_ROTATION_ERROR = 3.0  # [deg]
MAX_GAP_ERROR = 5.0  # [mm], of the gap between the fingers
GAP_STEPS = 2  # by which fingers recorded before robosuite 1.5 may be early or late: they took 8 steps instead of 10
MIN_SHARE_WITHIN_LIMITS = 0.9  # of the chunks of the demos that are replayed as a whole
MAX_STARTUP_STEPS = 8  # after which a start-up effect must be gone
MAX_STARTUP_ERRORS = (30.0, 10.0, MAX_GAP_ERROR)  # [mm], [deg], [mm]: robosuite varies the initial joints by 0.02 rad

Pose = list[tuple[Array, Array, float]]
"""Of each arm: end-effector position [m] (3,), orientation (3, 3), and gap between the fingers [m]."""
PoseError = tuple[float, float, float]
"""Of the position [mm], the orientation [deg], and the gap between the fingers [mm]."""

LIMITS: PoseError = (MAX_POSITION_ERROR, MAX_ROTATION_ERROR, MAX_GAP_ERROR)


@dataclass(frozen=True)
class WholeReplay:
    """A replay of all actions of a demo from its first state."""

    succeeds: bool
    mm: float
    deg: float
    """Largest end-effector error of the replay."""


@dataclass(frozen=True)
class ReplayResult:
    """The check of one demo."""

    demo: str
    model: str
    """Source of the model, see observations.MODEL_RECORDED."""
    succeeds: bool
    """Whether the recorded states meet the success condition of the task."""
    chunks: list[PoseError]
    """Error after each replayed chunk; if there is a start-up effect, the first chunk begins after it."""
    startup_mm: float = 0.0
    """Position error of the first chunk [mm] with the start-up effect; 0 without one."""
    whole: WholeReplay | None = None
    """None if the demo was not replayed as a whole."""


def is_within(error: PoseError, limits: PoseError) -> bool:
    """Whether no value of `error` exceeds that of `limits`."""
    return all(value <= limit for value, limit in zip(error, limits, strict=True))


def check_demo(
    sim: Simulator, spec: RenderSpec, replay_sim: Simulator, demo: Demo, whole: bool = True, gap_steps: int = 0
) -> ReplayResult:
    """Replays `demo` in `replay_sim`, which takes actions in the convention of the store, and compares the end-effector
    poses with those of the recorded states, set in `sim`. Both may be the same simulator. Without `whole`, only
    a sample of chunks is replayed if these are within the limits. `gap_steps`: by how many steps the fingers may be
    early or late.
    """
    model = load_demo_model(sim, demo)
    recorded_poses, succeeds = [], False
    for state in demo.states:
        sim.set_kinematic_state(state)
        recorded_poses.append(_pose(sim))
        succeeds = succeeds or sim.is_success()
    if replay_sim is not sim:
        load_demo_model(replay_sim, demo)
    replay = _Replay(sim, spec, replay_sim, demo, recorded_poses, gap_steps)
    if not whole:
        errors = [replay.chunk_error(start) for start in _sample_chunks(recorded_poses)]
        if all(is_within(error, LIMITS) for error in errors):
            return ReplayResult(demo.name, model, succeeds, errors)
    # Of the last step, nothing was recorded after its action.
    starts = range(0, len(demo.actions) - 1, CHUNK_STEPS)
    errors = [replay.chunk_error(start) for start in starts]
    startup_mm, error_after_startup = 0.0, _find_startup_effect(replay, errors)
    if error_after_startup is not None:
        startup_mm, errors[0] = errors[0][0], error_after_startup
    if not whole and all(is_within(error, LIMITS) for error in errors):
        return ReplayResult(demo.name, model, succeeds, errors, startup_mm)
    result, by_step = replay.whole()
    # Some controllers remember what happened before a chunk. Where the whole demo is followed, its actions are right.
    for i, start in enumerate(starts):
        error = by_step[min(start + CHUNK_STEPS, len(by_step) - 1)]
        if not is_within(errors[i], LIMITS) and is_within(error, LIMITS):
            errors[i] = error
    return ReplayResult(demo.name, model, succeeds, errors, startup_mm, result if whole else None)


class _Replay:
    """Executes actions of a demo from its recorded states, in the convention of the store."""

    def __init__(
        self,
        sim: Simulator,
        spec: RenderSpec,
        replay_sim: Simulator,
        demo: Demo,
        recorded_poses: list[Pose],
        gap_steps: int,
    ) -> None:
        self._sim, self._spec, self._replay_sim, self._gap_steps = sim, spec, replay_sim, gap_steps
        self._demo, self._recorded_poses = demo, recorded_poses

    def chunk_error(self, start: int) -> PoseError:
        """The error after `CHUNK_STEPS` actions, or as many as there are, from the recorded state `start`."""
        end = min(start + CHUNK_STEPS, len(self._demo.actions) - 1)
        actions = self._executed_actions(start, end)
        self._replay_sim.set_state(self._demo.states[start], self._demo.actions[:start])
        for action in actions:
            self._replay_sim.step(action)
        pose = _pose(self._replay_sim)
        around = self._recorded_poses[max(0, end - self._gap_steps) : end + self._gap_steps + 1]
        mm, deg, _ = _pose_error(pose, self._recorded_poses[end])
        return mm, deg, max(_gap_error(gap, [x[arm][2] for x in around]) for arm, (*_, gap) in enumerate(pose))

    def whole(self) -> tuple[WholeReplay, list[PoseError]]:
        """Executes all actions from the first state; also returns the error before each action."""
        actions = self._executed_actions(0, len(self._demo.actions))
        self._replay_sim.set_state(self._demo.states[0])
        succeeds, errors = False, list[PoseError]()
        for action, pose in zip(actions, self._recorded_poses, strict=True):
            errors.append(_pose_error(_pose(self._replay_sim), pose))
            succeeds = self._replay_sim.step(action) or succeeds
        position_error, rotation_error, _ = np.max(errors, axis=0)
        return WholeReplay(succeeds, float(position_error), float(rotation_error)), errors

    def _executed_actions(self, start: int, end: int) -> Array:
        """The executed actions [start, end), not the intended ones, in the convention of the store (n, Da)."""
        states, actions = self._demo.states[start:end], self._demo.actions[start:end]
        if self._spec.source_actions == "absolute":
            return axis_angle_to_rotation_6d(actions, self._sim.task.schema.action)
        if self._spec.actions == self._spec.source_actions:
            return actions
        goals = []
        for state, action in zip(states, actions, strict=True):
            self._sim.set_state(state)
            goals.append(self._sim.absolute_goal(action))
        return np.stack(goals)


def _sample_chunks(poses: list[Pose]) -> list[int]:
    """First steps of chunks: at regular intervals, the last one, and those in which the recorded position, orientation
    and gap of the fingers change most.
    """
    last = len(poses) - 1 - CHUNK_STEPS
    if last < 0:
        return [0] if len(poses) > 1 else []
    motions = [_pose_error(poses[i + CHUNK_STEPS], poses[i]) for i in range(last + 1)]
    regular = range(0, last, SAMPLE_INTERVAL * CHUNK_STEPS)
    return sorted({*regular, last, *np.argmax(motions, axis=0).tolist()})


def _find_startup_effect(replay: _Replay, errors: list[PoseError]) -> PoseError | None:
    """The error of the first chunk after a start-up effect, None if there is no such effect.

    `errors` are those of the chunks that cover the demo. It is one if the first chunk is beyond the limits, but not
    far, one that begins a few steps later is within them, and so are those of the rest of the demo.
    """
    if not errors or is_within(errors[0], LIMITS) or not is_within(errors[0], MAX_STARTUP_ERRORS):
        return None
    rest = [is_within(error, LIMITS) for error in errors[1:]]
    if np.mean(rest or [False]) < MIN_SHARE_WITHIN_LIMITS:
        return None
    later = (replay.chunk_error(start) for start in range(1, MAX_STARTUP_STEPS + 1))
    return next((error for error in later if is_within(error, LIMITS)), None)


def _pose(sim: Simulator) -> Pose:
    return [(*sim.eef_pose(arm), sim.gripper_opening(arm)[0]) for arm in range(sim.n_arms)]


def _gap_error(gap: float, recorded: list[float]) -> float:
    """By how much a gap between fingers [m] is outside of those recorded around its step [mm]."""
    return max(min(recorded) - gap, gap - max(recorded), 0.0) * 1e3


def _pose_error(pose: Pose, reference: Pose) -> PoseError:
    """The largest error of an arm."""
    errors = [
        (
            float(np.linalg.norm(ours[0] - theirs[0])) * 1e3,
            float(np.degrees(rotation_angle(ours[1], theirs[1]))),
            abs(ours[2] - theirs[2]) * 1e3,
        )
        for ours, theirs in zip(pose, reference, strict=True)
    ]
    position, rotation, gap = map(max, zip(*errors, strict=True))
    return position, rotation, gap
