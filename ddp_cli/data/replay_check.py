"""Checks a recording by replay: do its actions have the recorded effect in this simulator?

Actions are replayed in chunks, from recorded states at regular intervals: as many as a policy executes between
observations. The end-effector pose after each chunk is compared with the recorded one. This shows what training on the
demos is worth: other controllers, frames or scales fail at once, whereas a replay of a whole episode drifts away over
many contacts even if all is well. The whole episode is replayed, too; its outcome is reported, not judged.

robosuite's collectors restore a state before the first action, but not the controller, whose goal is still that of
another initial pose: the first actions have another effect than when they are replayed. Up to robosuite 1.4 this lasts
until the first rotation, since actions without one keep the goal's orientation. Such a start-up effect is told from
drift by the rest of the demo: see `_find_startup_effect`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ddp_cli.data.actions import axis_angle_to_rotation_6d
from ddp_cli.data.demo import Demo
from ddp_cli.data.frame_check import FrameResult
from ddp_cli.data.image_faults import MIN_PSNR
from ddp_cli.data.observations import RenderSpec, load_demo_model
from ddp_cli.data.store_check import REPAIR_HINT
from ddp_cli.errors import DataError
from ddp_cli.rotation import rotation_angle
from ddp_cli.sim.simulator import Array, Simulator

CHUNK_STEPS = 8  # actions that are replayed from a recorded state
CHUNK_INTERVAL = 25  # [steps] between the recorded states at which chunks start
MAX_POSITION_ERROR = 5.0  # [mm], of the end effector after a chunk
MAX_ROTATION_ERROR = 3.0  # [deg]
MAX_GAP_ERROR = 5.0  # [mm], of the gap between the fingers
MIN_SHARE_WITHIN_LIMITS = 0.9  # of the chunks of all demos
MIN_SHARE_OF_DEMO = 0.5  # of the chunks of each demo
MAX_STARTUP_STEPS = 8  # after which a start-up effect must be gone
MAX_STARTUP_ERRORS = (30.0, 10.0, MAX_GAP_ERROR)  # [mm], [deg], [mm]: robosuite varies the initial joints by 0.02 rad
MAX_LISTED_DEMOS = 5

Pose = tuple[Array, Array, float]
"""End-effector position [m] (3,), orientation (3, 3), and gap between the fingers [m]."""
PoseError = tuple[float, float, float]
"""Of the position [mm], the orientation [deg], and the gap between the fingers [mm]."""

LIMITS: PoseError = (MAX_POSITION_ERROR, MAX_ROTATION_ERROR, MAX_GAP_ERROR)


@dataclass(frozen=True)
class ReplayResult:
    """The check of one demo."""

    demo: str
    model: str
    """Source of the model, see observations.MODEL_RECORDED."""
    succeeds: bool
    """Whether the recorded states meet the success condition of the task."""
    replay_succeeds: bool
    """Whether a replay of all actions from the first state succeeds."""
    replay_mm: float
    replay_deg: float
    """Largest end-effector error of this replay."""
    chunks: list[PoseError]
    """Error after each chunk; if there is a start-up effect, the first chunk begins after it."""
    startup_mm: float = 0.0
    """Position error of the first chunk [mm] with the start-up effect; 0 without one."""


# -- replaying a demo -------------------------------------------------------------------------------


def check_demo(sim: Simulator, spec: RenderSpec, replay_sim: Simulator, demo: Demo) -> ReplayResult:
    """Replays `demo` in `replay_sim`, which takes actions in the convention of the store, and compares the end-effector
    poses with those of the recorded states, set in `sim`. Both may be the same simulator.
    """
    model = load_demo_model(sim, demo)
    recorded_poses, succeeds = [], False
    for state in demo.states:
        sim.set_kinematic_state(state)
        recorded_poses.append(_pose(sim))
        succeeds = succeeds or sim.is_success()
    actions = _executed_actions(sim, spec, demo)
    if replay_sim is not sim:
        load_demo_model(replay_sim, demo)
    chunk_errors = [
        _replay_chunk(replay_sim, demo, actions, recorded_poses, start, start + CHUNK_STEPS)
        for start in range(0, max(1, len(actions) - CHUNK_STEPS), CHUNK_INTERVAL)
        if len(actions) > 1  # of a single step, nothing was recorded after its action
    ]
    startup_mm, error_after_startup = 0.0, None
    if chunk_errors:
        error_after_startup = _find_startup_effect(replay_sim, demo, actions, recorded_poses, chunk_errors[0])
    if error_after_startup is not None:
        startup_mm, chunk_errors[0] = chunk_errors[0][0], error_after_startup
    replay_sim.set_state(demo.states[0])
    replay_errors, replay_succeeds = [(0.0, 0.0, 0.0)], False
    for action, pose in zip(actions, recorded_poses, strict=True):
        replay_errors.append(_pose_error(_pose(replay_sim), pose))
        replay_succeeds = replay_sim.step(action) or replay_succeeds
    position_error, rotation_error, _ = np.max(replay_errors, axis=0)
    return ReplayResult(
        demo.name, model, succeeds, replay_succeeds, float(position_error), float(rotation_error), chunk_errors,
        startup_mm,
    )  # fmt: skip


def _replay_chunk(
    sim: Simulator, demo: Demo, actions: Array, recorded_poses: list[Pose], start: int, end: int
) -> PoseError:
    """The error after the actions [start, end) from the recorded state `start`."""
    end = min(end, len(actions) - 1)
    sim.set_state(demo.states[start], actions[:start, -1])
    for action in actions[start:end]:
        sim.step(action)
    return _pose_error(_pose(sim), recorded_poses[end])


def _find_startup_effect(
    sim: Simulator, demo: Demo, actions: Array, recorded_poses: list[Pose], first_error: PoseError
) -> PoseError | None:
    """The error of the first chunk after a start-up effect, None if there is no such effect.

    It is one if the first chunk is beyond the limits, but not far, one that begins a few steps later is within them,
    and so are the chunks that cover the rest of the demo without a gap.
    """
    if _is_within(first_error, LIMITS) or not _is_within(first_error, MAX_STARTUP_ERRORS):
        return None
    for start in range(1, min(1 + MAX_STARTUP_STEPS, len(actions) - CHUNK_STEPS)):
        error = _replay_chunk(sim, demo, actions, recorded_poses, start, start + CHUNK_STEPS)
        if _is_within(error, LIMITS):
            rest = [
                _is_within(_replay_chunk(sim, demo, actions, recorded_poses, i, i + CHUNK_STEPS), LIMITS)
                for i in range(start + CHUNK_STEPS, len(actions) - 1, CHUNK_STEPS)
            ]
            return error if np.mean(rest or [False]) >= MIN_SHARE_WITHIN_LIMITS else None
    return None


def _is_within(error: PoseError, limits: PoseError) -> bool:
    return all(value <= limit for value, limit in zip(error, limits, strict=True))


def _executed_actions(sim: Simulator, spec: RenderSpec, demo: Demo) -> Array:
    """The executed actions, not the intended ones, in the convention of the store: (n, 7) or (n, 10)."""
    if spec.source_actions == "absolute":
        return axis_angle_to_rotation_6d(demo.actions)
    if spec.actions == "delta":
        return demo.actions
    goals = []
    for state, action in zip(demo.states, demo.actions, strict=True):
        sim.set_state(state)
        goals.append(sim.absolute_goal(action))
    return np.stack(goals)


def _pose(sim: Simulator) -> Pose:
    return *sim.eef_pose(), sim.gripper_opening()[0]


def _pose_error(pose: Pose, reference: Pose) -> PoseError:
    return (
        float(np.linalg.norm(pose[0] - reference[0])) * 1e3,
        float(np.degrees(rotation_angle(pose[1], reference[1]))),
        abs(pose[2] - reference[2]) * 1e3,
    )


# -- the result for a file --------------------------------------------------------------------------


def summarize_checks(results: list[ReplayResult], frames: list[FrameResult] | None = None) -> dict[str, Any]:
    """The attribute `check` of a store: passed or failed, the reasons, the limits and the measured values.

    `frames` are the comparisons of recorded observations, of every demo.
    """
    if not results:
        return {"result": "not verified", "why": "no demo was checked", "demos": []}
    frames = frames or []
    errors = np.array([error for result in results for error in result.chunks])  # (chunks, 3)
    if not len(errors):
        why = "the replayed demos have a single step: what their actions do was not recorded"
        return {"result": "not verified", "why": why, "demos": []}
    startup_errors = [result.startup_mm for result in results if result.startup_mm]
    values = {
        "chunks": len(errors),
        "chunks_within_limits": float(np.mean((errors <= LIMITS).all(1))),
        "chunk_mm_p90": float(np.quantile(errors[:, 0], 0.9)),
        "chunk_deg_p90": float(np.quantile(errors[:, 1], 0.9)),
        "chunk_gap_mm_p90": float(np.quantile(errors[:, 2], 0.9)),
        "recorded_successes": sum(result.succeeds for result in results),
        "replay_successes": sum(result.replay_succeeds for result in results),
        "replay_mm": max(result.replay_mm for result in results),
        "replay_deg": max(result.replay_deg for result in results),
        "startup_demos": len(startup_errors),
        "startup_mm": max(startup_errors, default=0.0),
        "psnr": min((frame.psnr for frame in frames if frame.psnr is not None), default=None),
        "compared_demos": len(frames),
        "image_faults": {frame.demo: list(frame.image_faults.values()) for frame in frames if frame.image_faults},
        "models": sorted({result.model for result in results}),
    }
    shares = {
        result.demo: float(np.mean((np.array(result.chunks) <= LIMITS).all(1))) for result in results if result.chunks
    }
    values["wrong_demos"] = [name for name, share in shares.items() if share < MIN_SHARE_OF_DEMO]
    reasons = _failure_reasons(values)
    return {
        "result": "failed" if reasons else "passed",
        "why": "; ".join(reasons),
        "limits": {
            "chunk_steps": CHUNK_STEPS, "mm": MAX_POSITION_ERROR, "deg": MAX_ROTATION_ERROR, "gap_mm": MAX_GAP_ERROR,
            "share": MIN_SHARE_WITHIN_LIMITS, "psnr_db": MIN_PSNR,
        },
        **values,
        "demos": [asdict(result) | {"chunks": len(result.chunks)} for result in results],
    }  # fmt: skip


def _failure_reasons(values: dict[str, Any]) -> list[str]:
    reasons = []
    if values["chunks_within_limits"] < MIN_SHARE_WITHIN_LIMITS:
        reasons.append(
            f"{values['chunks_within_limits']:.0%} of {values['chunks']} replayed chunks of {CHUNK_STEPS} actions end "
            f"within {MAX_POSITION_ERROR:g} mm and {MAX_ROTATION_ERROR:g} degrees of the recorded end-effector pose, "
            f"with the finger gap within {MAX_GAP_ERROR:g} mm, expected at least {MIN_SHARE_WITHIN_LIMITS:.0%}"
        )
    wrong = values["wrong_demos"]
    if wrong and not reasons:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        reasons.append(
            f"most replayed chunks of {wrong[0]}{more} end further than {MAX_POSITION_ERROR:g} mm or "
            f"{MAX_ROTATION_ERROR:g} degrees from the recorded end-effector pose; leave out these demos"
        )
    faults = values["image_faults"]
    if faults:
        reasons.append(
            f"the images of {len(faults)} of {values['compared_demos']} demos do not match the rendered ones "
            f"({'; '.join(_image_fault_lines(faults))}); --rerender renders them, --skip-bad leaves these demos out"
        )
    return reasons


def _image_fault_lines(faults: dict[str, list[str]]) -> list[str]:
    """How the images of the first demos differ, one line per demo."""
    lines = [f"{demo}: {', '.join(texts)}" for demo, texts in faults.items()]
    more = [f"and {len(lines) - MAX_LISTED_DEMOS} more"] if len(lines) > MAX_LISTED_DEMOS else []
    return lines[:MAX_LISTED_DEMOS] + more


def check_summary(check: dict[str, Any]) -> str:
    """The attribute `check` of a store in one line. Stores of older versions lack some of its values.

    DataError if it is damaged.
    """
    try:
        return _summarize(check) if check.get("demos") else f"not verified: {check['why']}"
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise DataError(f"the attribute 'check' of the store is damaged ({type(e).__name__}: {e}).", REPAIR_HINT) from e


def _summarize(check: dict[str, Any]) -> str:
    count = len(check["demos"])
    text = (
        f"{check['result']}: {count} {'demo' if count == 1 else 'demos'} replayed; after {CHUNK_STEPS} actions the end "
        f"effector is within {check['chunk_mm_p90']:.1f} mm and {check['chunk_deg_p90']:.1f} degrees of the recording "
        f"(90th percentile of {check['chunks']} chunks); replays of whole demos drift by up to "
        f"{check['replay_mm']:.0f} mm, {check['replay_successes']} of {count} succeed "
        f"({check['recorded_successes']} as recorded)"
    )
    text += "".join(f"; model {model}" for model in check["models"] if "does not load" in model)
    if check.get("startup_demos"):
        text += (
            f"; the first actions of {check['startup_demos']} of them had another effect when they were recorded (up "
            f"to {check['startup_mm']:.0f} mm), as with robosuite's collectors"
        )
    if check["psnr"] is not None and not check.get("image_faults"):
        of_demos = f" of {check['compared_demos']} demos" if "compared_demos" in check else ""
        text += f"; recorded and rendered images{of_demos} agree with a PSNR of {check['psnr']:.0f} dB or more"
    return text + (f". {check['why'][0].upper()}{check['why'][1:]}." if check["why"] else ".")
