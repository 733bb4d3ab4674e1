"""The attribute `check` of a store: what the replay of its demos and the comparison of their observations showed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ddp_cli.data.frame_check import FrameResult
from ddp_cli.data.image_faults import MIN_PSNR
from ddp_cli.data.replay_check import (
    CHUNK_STEPS,
    LIMITS,
    MAX_GAP_ERROR,
    MAX_POSITION_ERROR,
    MAX_ROTATION_ERROR,
    MIN_SHARE_WITHIN_LIMITS,
    ReplayResult,
    is_within,
)
from ddp_cli.data.store_check import REPAIR_HINT
from ddp_cli.errors import DataError

MAX_SHARE_OF_DEMO = 0.1  # of the chunks of each demo, beyond the limits; one of several always may be
MAX_LISTED_DEMOS = 5


def not_verified(why: str) -> dict[str, Any]:
    """The attribute of a store whose demos were not replayed."""
    return {"result": "not verified", "why": why, "demos": []}


def wrong_demos(results: list[ReplayResult]) -> list[str]:
    """Names of the demos whose actions have another effect than when they were recorded."""
    return [result.demo for result in results if _is_wrong(result)]


def _is_wrong(result: ReplayResult) -> bool:
    """Whether more chunks end beyond the limits than contacts explain. Fingers that are elsewhere are never a matter of
    contacts.
    """
    wrong = sum(not is_within(error, LIMITS) for error in result.chunks)
    has_wrong_gap = any(gap > MAX_GAP_ERROR for _, _, gap in result.chunks)
    return has_wrong_gap or wrong > max(min(1, len(result.chunks) - 1), MAX_SHARE_OF_DEMO * len(result.chunks))


def summarize_checks(results: list[ReplayResult], frames: list[FrameResult] | None = None) -> dict[str, Any]:
    """The attribute `check`: passed or failed, the reasons, the limits and the measured values.

    `frames` are the comparisons of recorded observations, of every demo.
    """
    if not results:
        return not_verified("no demo was checked")
    frames = frames or []
    whole = [(result, result.whole) for result in results if result.whole]
    if not whole:
        return not_verified("the demos have a single step: what their actions do was not recorded")
    errors = np.array([error for result, _ in whole for error in result.chunks])  # (chunks, 3)
    startup_errors = [result.startup_mm for result in results if result.startup_mm]
    values = {
        "checked_demos": [result.demo for result in results if result.chunks],
        "wrong_demos": wrong_demos(results),
        "chunks": len(errors),
        "chunks_within_limits": float(np.mean((errors <= LIMITS).all(1))),
        "chunk_mm_p90": float(np.quantile(errors[:, 0], 0.9)),
        "chunk_deg_p90": float(np.quantile(errors[:, 1], 0.9)),
        "chunk_gap_mm_p90": float(np.quantile(errors[:, 2], 0.9)),
        "recorded_successes": sum(result.succeeds for result, _ in whole),
        "replay_successes": sum(replay.succeeds for _, replay in whole),
        "replay_mm": max(replay.mm for _, replay in whole),
        "replay_deg": max(replay.deg for _, replay in whole),
        "startup_demos": len(startup_errors),
        "startup_mm": max(startup_errors, default=0.0),
        "psnr": min((frame.psnr for frame in frames if frame.psnr is not None), default=None),
        "compared_demos": len(frames),
        "image_faults": {frame.demo: list(frame.image_faults.values()) for frame in frames if frame.image_faults},
        "models": sorted({result.model for result in results}),
    }
    reasons = _failure_reasons(values)
    return {
        "result": "failed" if reasons else "passed",
        "why": "; ".join(reasons),
        "limits": {
            "chunk_steps": CHUNK_STEPS, "mm": MAX_POSITION_ERROR, "deg": MAX_ROTATION_ERROR, "gap_mm": MAX_GAP_ERROR,
            "share": MIN_SHARE_WITHIN_LIMITS, "share_of_demo": 1 - MAX_SHARE_OF_DEMO, "psnr_db": MIN_PSNR,
        },
        **values,
        "demos": [asdict(result) | {"chunks": len(result.chunks)} for result, _ in whole],
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
    if wrong:
        of_demos = f"{len(wrong)} of {len(values['checked_demos'])} demos"
        reasons.append(
            f"the actions of {of_demos} have another effect than when they were recorded ({_list_demos(wrong)}); "
            "--skip-bad leaves them out"
        )
    faults = values["image_faults"]
    if faults:
        lines = [f"{demo}: {', '.join(texts)}" for demo, texts in faults.items()]
        more = [f"and {len(lines) - MAX_LISTED_DEMOS} more"] if len(lines) > MAX_LISTED_DEMOS else []
        reasons.append(
            f"the images of {len(faults)} of {values['compared_demos']} demos do not match the rendered ones "
            f"({'; '.join(lines[:MAX_LISTED_DEMOS] + more)}); --rerender renders them, --skip-bad leaves these demos "
            "out"
        )
    return reasons


def _list_demos(names: list[str]) -> str:
    more = [f"{len(names) - MAX_LISTED_DEMOS} more"] if len(names) > MAX_LISTED_DEMOS else []
    *first, last = names[:MAX_LISTED_DEMOS] + more
    return f"{', '.join(first)} and {last}" if first else last


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
    origin = " in the store that it was copied from" if check.get("inherited") else ""
    text = (
        f"{check['result']}{origin}: {count} {'demo' if count == 1 else 'demos'} replayed; after {CHUNK_STEPS} actions "
        f"the end effector is within {check['chunk_mm_p90']:.1f} mm and {check['chunk_deg_p90']:.1f} degrees of the "
        f"recording (90th percentile of {check['chunks']} chunks); replays of whole demos drift by up to "
        f"{check['replay_mm']:.0f} mm, {check['replay_successes']} of {count} succeed "
        f"({check['recorded_successes']} as recorded)"
    )
    others = len(check.get("checked_demos", check["demos"])) - count
    if others > 0:
        text += f"; chunks of {others} more {'demo' if others == 1 else 'demos'} replayed"
    text += "".join(f"; model {model}" for model in check["models"] if "does not load" in model)
    if check.get("startup_demos"):
        of_them = f"{check['startup_demos']} {'demo' if check['startup_demos'] == 1 else 'demos'}"
        text += (
            f"; the first actions of {of_them} had another effect when they were recorded (up to "
            f"{check['startup_mm']:.0f} mm), as with robosuite's collectors"
        )
    if check["psnr"] is not None and not check.get("image_faults"):
        of_demos = f" of {check['compared_demos']} demos" if "compared_demos" in check else ""
        text += f"; recorded and rendered images{of_demos} agree with a PSNR of {check['psnr']:.0f} dB or more"
    return text + (f". {check['why'][0].upper()}{check['why'][1:]}." if check["why"] else ".")
