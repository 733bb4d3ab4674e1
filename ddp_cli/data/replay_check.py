"""Checks a recording by replay: do its actions have the recorded effect in this simulator, and its images match?

Actions are replayed in chunks, from recorded states at regular intervals: as many as a policy executes between
observations. The end-effector pose after each chunk is compared with the recorded one. This shows what training on the
demos is worth: other controllers, frames or scales fail at once, whereas a replay of a whole episode drifts away over
many contacts even if all is well. The whole episode is replayed, too; its outcome is reported, not judged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.actions import axis_angle_to_rotation_6d
from ddp_cli.data.demo import Demo
from ddp_cli.data.observations import RenderSpec, load_demo_model
from ddp_cli.rotation import rotation_angle
from ddp_cli.sim.simulator import Array, Simulator

CHUNK_STEPS = 8  # actions that are replayed from a recorded state
CHUNK_INTERVAL = 25  # [steps] between the recorded states at which chunks start
MAX_POSITION_ERROR = 5.0  # [mm], of the end effector after a chunk
MAX_ROTATION_ERROR = 3.0  # [deg]
MAX_GAP_ERROR = 5.0  # [mm], of the gap between the fingers
MIN_SHARE_WITHIN_LIMITS = 0.9  # of the chunks
MIN_PSNR = 30.0  # [dB], of recorded images against rendered ones
OBS_TOLERANCE = 1e-3  # [m], [rad], components of a quaternion

Pose = tuple[Array, Array, float]
"""End-effector position [m] (3,), orientation (3, 3), and gap between the fingers [m]."""
PoseError = tuple[float, float, float]
"""Of the position [mm], the orientation [deg], and the gap between the fingers [mm]."""


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
    """Error after each chunk."""
    psnr: float | None
    """Lowest PSNR of recorded images against rendered ones [dB]; None if no images were recorded."""
    differing: list[str]
    """Recorded low-dimensional observations that differ from those in a rollout."""


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
    chunk_errors = []
    for start in range(0, max(1, len(actions) - CHUNK_STEPS), CHUNK_INTERVAL):
        end = min(start + CHUNK_STEPS, len(actions) - 1)
        replay_sim.set_state(demo.states[start], actions[:start, -1])
        for action in actions[start:end]:
            replay_sim.step(action)
        chunk_errors.append(_pose_error(_pose(replay_sim), recorded_poses[end]))
    replay_sim.set_state(demo.states[0])
    replay_errors, replay_succeeds = [(0.0, 0.0, 0.0)], False
    for action, pose in zip(actions, recorded_poses, strict=True):
        replay_errors.append(_pose_error(_pose(replay_sim), pose))
        replay_succeeds = replay_sim.step(action) or replay_succeeds
    position_error, rotation_error, _ = np.max(replay_errors, axis=0)
    lowest_psnr, differing = _compare_observations(sim, demo)
    return ReplayResult(
        demo.name, model, succeeds, replay_succeeds, float(position_error), float(rotation_error), chunk_errors,
        lowest_psnr, differing,
    )  # fmt: skip


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


def _compare_observations(sim: Simulator, demo: Demo) -> tuple[float | None, list[str]]:
    """Compares recorded observations with those of three states: lowest PSNR of an image, other keys that differ."""
    image_psnrs: list[float] = []
    differing: set[str] = set()
    for step in sorted({0, len(demo.states) // 2, len(demo.states) - 1}):
        sim.set_kinematic_state(demo.states[step])
        image_psnrs += [psnr(sim.image(key), demo.obs[key][step]) for key in sim.task.cameras if key in demo.obs]
        for key, value in sim.low_dim().items():
            if key in demo.obs and not np.allclose(demo.obs[key][step], value, atol=OBS_TOLERANCE):
                differing.add(key)
    return min(image_psnrs, default=None), sorted(differing)


def psnr(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two images [dB], at most 99."""
    mean_squared_error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return 99.0 if mean_squared_error < 1e-5 else min(99.0, 10 * np.log10(255**2 / mean_squared_error))


# -- the result for a file --------------------------------------------------------------------------


def summarize_checks(results: list[ReplayResult]) -> dict[str, Any]:
    """The attribute `check` of a store: passed or failed, the reasons, the limits and the measured values."""
    if not results:
        return {"result": "not verified", "why": "no demo was checked", "demos": []}
    errors = np.array([error for result in results for error in result.chunks])  # (chunks, 3)
    limits = (MAX_POSITION_ERROR, MAX_ROTATION_ERROR, MAX_GAP_ERROR)
    image_psnrs = [result.psnr for result in results if result.psnr is not None]
    values = {
        "chunks": len(errors),
        "chunks_within_limits": float(np.mean((errors <= limits).all(1))),
        "chunk_mm_p90": float(np.quantile(errors[:, 0], 0.9)),
        "chunk_deg_p90": float(np.quantile(errors[:, 1], 0.9)),
        "chunk_gap_mm_p90": float(np.quantile(errors[:, 2], 0.9)),
        "recorded_successes": sum(result.succeeds for result in results),
        "replay_successes": sum(result.replay_succeeds for result in results),
        "replay_mm": max(result.replay_mm for result in results),
        "replay_deg": max(result.replay_deg for result in results),
        "psnr": min(image_psnrs, default=None),
        "models": sorted({result.model for result in results}),
    }
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
    if values["psnr"] is not None and values["psnr"] < MIN_PSNR:
        reasons.append(
            f"a recorded image differs from the rendered one by a PSNR of {values['psnr']:.0f} dB, expected at least "
            f"{MIN_PSNR:g}"
        )
    return reasons


def check_summary(check: dict[str, Any]) -> str:
    """The attribute `check` of a store in one line."""
    if not check.get("demos"):
        return f"not verified: {check['why']}"
    count = len(check["demos"])
    text = (
        f"{check['result']}: {count} {'demo' if count == 1 else 'demos'} replayed; after {CHUNK_STEPS} actions the end "
        f"effector is within {check['chunk_mm_p90']:.1f} mm and {check['chunk_deg_p90']:.1f} degrees of the recording "
        f"(90th percentile of {check['chunks']} chunks); replays of whole demos drift by up to "
        f"{check['replay_mm']:.0f} mm, {check['replay_successes']} of {count} succeed "
        f"({check['recorded_successes']} as recorded)"
    )
    text += "".join(f"; model {model}" for model in check["models"] if "does not load" in model)
    if check["psnr"] is not None:
        text += f"; recorded and rendered images agree with a PSNR of {check['psnr']:.0f} dB"
    return text + (f". {check['why'][0].upper()}{check['why'][1:]}." if check["why"] else ".")
