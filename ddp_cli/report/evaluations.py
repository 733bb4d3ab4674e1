"""The part of a page that shows evaluations: success with its interval, every start, and where evaluations differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_cli.errors import DataError
from ddp_cli.evaluation.open_loop import BASELINES, POLICY
from ddp_cli.evaluation.report import recorded_checkpoint
from ddp_cli.evaluation.statistics import pair_outcomes, wilson_interval
from ddp_cli.report.page import Section

HINT = "Name a report of `ddp eval`: --out, or eval/ in a run."
ELSEWHERE = ("goal", "target", "agent", "robot", "eef")
"""Parts of the names of positions that are not those of the object."""


@dataclass(frozen=True)
class Report:
    """The evaluation of one policy, from the JSON file `path`, which may hold several."""

    name: str
    path: Path
    content: dict[str, Any]


@dataclass(frozen=True)
class EvaluationFile:
    """What a JSON file of `ddp eval` holds: evaluations, or errors on recorded episodes; `is_sweep`: of one policy with
    several samplers or numbers of denoising steps.
    """

    path: Path
    reports: list[Report]
    is_sweep: bool = False
    open_loop: dict[str, Any] | None = None


def read_evaluations(path: Path) -> EvaluationFile:
    """The evaluations in the JSON file `path`; DataError if `ddp eval` did not write it."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise TypeError
        if "parts" in content:
            open_loop_section(path, content)  # raises if something is missing
            return EvaluationFile(path, [], open_loop=content)
        named = _named_reports(path, content)
        evaluations = [_evaluation(Report(name, path, report)) for name, report in named]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError) as e:
        raise DataError(f"'{path}' is not a report of an evaluation.", HINT) from e
    if not all(evaluation["episodes"] for evaluation in evaluations):
        raise DataError(f"'{path}' holds an evaluation without episodes.", HINT)
    return EvaluationFile(path, [Report(name, path, report) for name, report in named], "sweep" in content)


def _named_reports(path: Path, content: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    if "sweep" in content:
        return [(f"{r['sampler']}, {r['inference_steps']} steps", r) for r in content["sweep"]]
    if "paired" in content:
        first, second = content["first"], content["second"]
        return [(_policy_name(first, "first"), first), (_policy_name(second, "second"), second)]
    if "fresh" in content:
        reports = [(_policy_name(r, path.stem), r) for r in content["checkpoints"]]
        return [*reports, (f"{_policy_name(content['fresh'], path.stem)}, fresh seeds", content["fresh"])]
    return [(path.stem, dict(content))]


def _policy_name(report: Mapping[str, Any], otherwise: str) -> str:
    return Path(recorded_checkpoint(report)).name or otherwise


def evaluations_section(reports: Sequence[Report], is_sweep: bool, films: Sequence[Mapping[str, Any]]) -> Section:
    """What a page shows of `reports`. `films`: what films.py says of the filmed episodes of each of them."""
    evaluations = [_evaluation(report) | {"films": filmed} for report, filmed in zip(reports, films, strict=True)]
    _make_unique(evaluations)
    outcomes = [{e["seed"]: e["success"] for e in evaluation["episodes"]} for evaluation in evaluations]
    # The same seed is the same start in the same environment only.
    are_comparable = all(_environment(report) == _environment(reports[0]) for report in reports)
    return {
        "kind": "evaluations",
        "title": " and ".join(dict.fromkeys(report.path.stem for report in reports)),
        "evaluations": evaluations,
        "is_sweep": is_sweep,
        "paired": _paired(outcomes) if len(evaluations) == 2 and are_comparable else None,
        "differing": _differing(outcomes) if are_comparable else [],
        "place": _place(evaluations),
    }


def _environment(report: Report) -> tuple[Any, Any]:
    return report.content.get("task"), report.content.get("env")


def _make_unique(evaluations: Sequence[dict[str, Any]]) -> None:
    """Numbers the names that several evaluations have."""
    names = [evaluation["name"] for evaluation in evaluations]
    for i, evaluation in enumerate(evaluations):
        if names.count(evaluation["name"]) > 1:
            evaluation["name"] += f" ({names[: i + 1].count(evaluation['name'])})"


def _evaluation(report: Report) -> dict[str, Any]:
    """One evaluation, as JSON; KeyError or TypeError if the report lacks something."""
    content = report.content
    episodes = [
        {
            "seed": int(e["seed"]), "success": bool(e["success"]), "held": e.get("held"), "steps": int(e["steps"]),
            "score": e.get("score"), "start": _start(e.get("start")),
        }
        for e in content["episodes"]
    ]  # fmt: skip
    count = len(episodes)
    successes = sum(e["success"] for e in episodes)
    low, high = wilson_interval(successes, count) if count else (0.0, 1.0)
    score_interval = content.get("score_interval_95")
    return {
        "name": report.name,
        "checkpoint": recorded_checkpoint(content),
        "facts": _facts(content),
        "success_rate": successes / count if count else math.nan,
        "interval": [low, high],
        "successes": successes,
        "score": content.get("score"),
        "score_interval": list(score_interval) if score_interval else None,
        "sampler": content.get("sampler"),
        "inference_steps": content.get("inference_steps"),
        "chunk_ms": content.get("chunk_ms"),
        "mean_steps": content.get("mean_steps"),
        "lost": [int(seed) for seed in content.get("lost", [])],
        "episodes": sorted(episodes, key=lambda e: e["seed"]),
    }


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was evaluated and how."""
    facts = [("checkpoint", recorded_checkpoint(content))]
    if content.get("task"):
        facts.append(("task", f"{content['task']}" + (f", from {content['obs']}" if content.get("obs") else "")))
    if content.get("sampler"):
        engine = f", engine {content['engine']}" if content.get("engine") else ""
        engine += f" on {content['device']}" if content.get("device") else ""
        facts.append(("sampler", f"{content['sampler']}, {content['inference_steps']} steps{engine}"))
    if "env" in content:
        facts.append(("environment", str(content["env"]["id"])))
    if content.get("chunk_ms") is not None:
        facts.append(("time per action chunk", f"{content['chunk_ms']:.1f} ms (median)"))
    if content.get("seconds") is not None:
        facts.append(("took", f"{content['seconds']:.0f} s"))
    if "held_out" in content:
        origin = "held out of training" if content["held_out"] else "may have been trained on"
        facts.append(("episodes", f"{len(content['episodes'])} of {Path(content['data']).name}, {origin}"))
    if content.get("until_ci"):
        facts.append(("interval", "approximate: when --until-ci stops depends on the results"))
    if content.get("seeds_also_used_for"):
        facts.append(("seeds", f"also used for {', '.join(content['seeds_also_used_for'])}"))
    return facts


def _start(start: Any) -> dict[str, list[float]]:
    return {str(name): [float(x) for x in values] for name, values in (start or {}).items()}


def _place(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The position of the starts that is shown first: that of the object; empty if none was recorded."""
    names = list(dict.fromkeys(name for x in evaluations for e in x["episodes"] for name in e["start"]))
    of_object = [name for name in names if not any(word in name.lower() for word in ELSEWHERE)]
    return next(iter([*of_object, *names]), "")


def _paired(outcomes: Sequence[Mapping[int, bool]]) -> dict[str, Any] | None:
    """First minus second on the seeds of both; None without any."""
    first, second = outcomes
    if not first.keys() & second.keys():
        return None
    test = pair_outcomes(dict(first), dict(second))
    return {
        "both": test.both, "only_first": test.only_first, "only_second": test.only_second, "neither": test.neither,
        "difference": test.difference, "interval": list(test.interval), "p": test.p_value,
    }  # fmt: skip


def _differing(outcomes: Sequence[Mapping[int, bool]]) -> list[int]:
    """Seeds that some evaluations end with success and others without."""
    seeds = sorted({seed for one in outcomes for seed in one})
    return [seed for seed in seeds if len({one[seed] for one in outcomes if seed in one}) > 1]


def open_loop_section(path: Path, content: Mapping[str, Any]) -> Section:
    """What a page shows of an evaluation on recorded episodes."""
    parts = [
        {
            "name": str(name), "unit": part["unit"] or "as recorded",
            "methods": [
                {
                    "name": method, "error": part[key]["error"], "interval": part[key]["interval_95"],
                    "by_step": list(part[key]["by_step"]),
                }
                for key, method in {POLICY: "policy", **BASELINES}.items()
            ],
        }
        for name, part in content["parts"].items()
    ]  # fmt: skip
    return {
        "kind": "open-loop", "title": path.stem, "facts": _facts(content), "parts": parts,
        "rate": content.get("rate"),
    }  # fmt: skip
