"""What a check of demos comes to: judged by stated limits, kept in the store, said in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CHUNK = 8  # actions that are executed before the policy looks again
WITHIN_MM, WITHIN_DEG = 5.0, 3.0
WITHIN_GAP = 5.0  # [mm], between the fingers
MOST = 0.9  # of the chunks end within these
LEAST_PSNR = 30.0  # [dB]


@dataclass(frozen=True)
class ReplayResult:
    """What one demo shows. Distances of the hand from where it was recorded: [mm], [deg]."""

    demo: str
    model: str
    succeeds: bool
    """The recorded states, by the task's own check."""
    replay_succeeds: bool
    """All actions executed from the first state."""
    replay_mm: float
    replay_deg: float
    chunks: list[tuple[float, float, float]]
    """After each chunk: the hand [mm], [deg], the gap between the fingers [mm]."""
    psnr: float | None
    """Of stored pictures against drawn ones [dB], the lowest; None where nothing was recorded."""
    differing: list[str]
    """Recorded observations, no pictures, that are others than a rollout would see in the recorded states."""


def verdict(checked: list[ReplayResult]) -> dict[str, Any]:
    """Passed or failed, why, by which limits, and the figures: as a store keeps it."""
    if not checked:
        return {"result": "not verified", "why": "no demo was checked", "demos": []}
    ends = np.array([chunk for demo in checked for chunk in demo.chunks])
    within = float(np.mean((ends <= (WITHIN_MM, WITHIN_DEG, WITHIN_GAP)).all(1)))
    pictures = [demo.psnr for demo in checked if demo.psnr is not None]
    figures = {
        "chunks": len(ends),
        "chunks_within_limits": within,
        "chunk_mm_p90": float(np.quantile(ends[:, 0], 0.9)),
        "chunk_deg_p90": float(np.quantile(ends[:, 1], 0.9)),
        "chunk_gap_mm_p90": float(np.quantile(ends[:, 2], 0.9)),
        "recorded_successes": sum(demo.succeeds for demo in checked),
        "replay_successes": sum(demo.replay_succeeds for demo in checked),
        "replay_mm": max(demo.replay_mm for demo in checked),
        "replay_deg": max(demo.replay_deg for demo in checked),
        "psnr": min(pictures) if pictures else None,
        "models": sorted({demo.model for demo in checked}),
    }
    why = _faults(figures)
    return {
        "result": "failed" if why else "passed",
        "why": "; ".join(why),
        "limits": {
            "chunk_steps": CHUNK, "mm": WITHIN_MM, "deg": WITHIN_DEG, "gap_mm": WITHIN_GAP, "share": MOST,
            "psnr_db": LEAST_PSNR,
        },
        **figures,
        "demos": [asdict(demo) | {"chunks": len(demo.chunks)} for demo in checked],
    }  # fmt: skip


def _faults(figures: dict[str, Any]) -> list[str]:
    found = []
    if figures["chunks_within_limits"] < MOST:
        found.append(
            f"after {CHUNK} of the recorded actions the hand is within {WITHIN_MM:g} mm and {WITHIN_DEG:g} degrees of "
            f"the recording, and its fingers within {WITHIN_GAP:g} mm, in {figures['chunks_within_limits']:.0%} of "
            f"{figures['chunks']} tries, not in {MOST:.0%}"
        )
    if figures["psnr"] is not None and figures["psnr"] < LEAST_PSNR:
        found.append(
            f"a picture that is drawn anew differs from the recorded one by a PSNR of {figures['psnr']:.0f} dB"
        )
    return found


def in_words(check: dict[str, Any]) -> str:
    """One line for people."""
    if not check.get("demos"):
        return f"not verified: {check['why']}"
    count = len(check["demos"])
    text = (
        f"{check['result']}: {count} {'demo' if count == 1 else 'demos'} executed; after {CHUNK} actions the hand is "
        f"{check['chunk_mm_p90']:.1f} mm and {check['chunk_deg_p90']:.1f} degrees off "
        f"(90% of {check['chunks']} tries); "
        f"whole demos drift by {check['replay_mm']:.0f} mm at most and {check['replay_successes']} of {count} succeed, "
        f"as recorded {check['recorded_successes']}"
    )
    text += "".join(f"; model {model}" for model in check["models"] if "does not load" in model)
    if check["psnr"] is not None:
        text += f"; pictures agree with drawn ones to {check['psnr']:.0f} dB"
    return text + (f". {check['why'][0].upper()}{check['why'][1:]}." if check["why"] else ".")
