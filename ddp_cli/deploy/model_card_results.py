"""Evaluations in a model card: as a section, and as the metadata that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ddp_cli.deploy.model_card_tables import markdown_table
from ddp_cli.evaluation.open_loop import BASELINES
from ddp_cli.evaluation.report import EvalReport
from ddp_cli.evaluation.statistics import wilson_interval
from ddp_cli.evaluation.stored_reports import OpenLoopError, OpenLoopReport, StoredReports
from ddp_cli.seeds import purposes_of_seeds

SIMULATOR = "simulator of the task"
NO_REPORTS = "Not evaluated yet, or not in its run: `ddp eval CHECKPOINT`.\n"

SEED_NOTES = {
    "collect": "Seeds from 1000 to 99999 are those of collected demonstrations: the policy may have been trained on "
    "these initial states.\n",
    "training": "Seeds from 200000 to 299999 are those by which training chooses the best checkpoint: success on them "
    "tends to be overestimated.\n",
}


def results_section(spec: Mapping[str, Any], reports: StoredReports) -> str:
    """The evaluations of the checkpoint; `spec` is the content of policy.json."""
    evaluations = [report for report in reports.episodes if report.seeds]
    if not evaluations and not reports.open_loop:
        return NO_REPORTS
    sections = [_episodes_table(evaluations)] if evaluations else []
    sections += [_open_loop_table(report) for report in reports.open_loop]
    notes = _notes(spec, evaluations, reports.open_loop)
    return "\n".join([*sections, *notes])


def _episodes_table(evaluations: Sequence[EvalReport]) -> str:
    has_scores = any(report.score for report in evaluations)
    has_env = any(report.env for report in evaluations)
    head = ["success", "95% interval", "sampler", "first seed"]
    rows: list[list[object]] = []
    for report in evaluations:
        low, high = wilson_interval(report.successes, len(report.seeds))
        interval = f"{low:.1%} to {high:.1%}" + ", approximate" * report.is_approximate
        row = [f"{report.successes} of {len(report.seeds)}", interval, _sampler(report), report.seeds[0]]
        row += [_score(report)] if has_scores else []
        row += [report.env["id"] if report.env else SIMULATOR] if has_env else []
        rows.append(row)
    return markdown_table([*head, *["score"] * has_scores, *["environment"] * has_env], rows)


def _sampler(report: EvalReport | OpenLoopReport) -> str:
    return f"{report.sampler}, {report.inference_steps} steps" if report.sampler else "that of the checkpoint"


def _score(report: EvalReport) -> str:
    if report.score is None:
        return ""
    mean, interval = report.score
    return f"{mean:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _open_loop_table(report: OpenLoopReport) -> str:
    origin = "that were held out of training" if report.held_out else "that may have been trained on"
    text = (
        f"Distance of predicted from recorded actions in {report.episodes} episodes {origin} ({_sampler(report)}); it "
        "is not a success rate:\n\n"
    )
    rows = [
        (
            f"{error.part} [{error.unit or 'as recorded'}]", _format_error(error.policy), _format_interval(error),
            *(_format_error(error.baselines[key]) for key in BASELINES),
        )
        for error in report.errors
    ]  # fmt: skip
    return text + markdown_table(("part", "error", "95% interval", *BASELINES.values()), rows)


def _format_error(error: float | None) -> str:
    return "-" if error is None else f"{error:.3g}"


def _format_interval(error: OpenLoopError) -> str:
    if error.interval is None:
        return "-" if error.policy is None else "one episode"
    return f"{max(error.interval[0], 0.0):.3g} to {error.interval[1]:.3g}"


def _notes(
    spec: Mapping[str, Any], evaluations: Sequence[EvalReport], open_loop: Sequence[OpenLoopReport]
) -> list[str]:
    """What a reader must know to judge the numbers."""
    notes = []
    exported = (spec["sampler"], spec["num_inference_steps"])
    reports: list[EvalReport | OpenLoopReport] = [*evaluations, *open_loop]
    samplers = [(report.sampler, report.inference_steps) for report in reports]
    if exported not in samplers and None not in (sampler for sampler, _ in samplers):
        notes.append(f"None of them used the sampler of this export ({exported[0]}, {exported[1]} steps).\n")
    if spec["precision"] != "fp32":
        notes.append(f"They are of the checkpoint in fp32; this export has {spec['precision']}.\n")
    if any(report.score for report in evaluations):
        notes.append("The score of an episode is the highest of its steps; the table has means, with 95% intervals.\n")
    seeds = [range(min(report.seeds), max(report.seeds) + 1) for report in evaluations if report.env is None]
    purposes = {purpose for one in seeds for purpose in purposes_of_seeds(one)}
    return notes + [note for purpose, note in SEED_NOTES.items() if purpose in purposes]


def model_index(task: str, evaluations: Sequence[EvalReport]) -> str:
    """The entry `model-index` of the metadata of a model card, in YAML, of which JSON strings are a part; empty without
    evaluations. Format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    by_env: dict[str, list[EvalReport]] = {}
    for report in evaluations:
        if report.seeds:
            by_env.setdefault(report.env["id"] if report.env else task, []).append(report)
    if not by_env:
        return ""
    lines = ["model-index:", f"- name: {_yaml_string(f'diffusion policy: {task}')}", "  results:"]
    for name, reports in by_env.items():
        lines += [
            "  - task: {type: robotics, name: Robotics}",
            f"    dataset: {{type: {_yaml_string(name)}, name: {_yaml_string(name)}}}",
            "    metrics:",
        ]
        for report in reports:
            label = f"{len(report.seeds)} episodes from seed {report.seeds[0]}, {_sampler(report)}"
            lines += _metric("success_rate", report.successes / len(report.seeds), f"success rate, {label}")
            lines += _metric("score", report.score[0], f"mean score, {label}") if report.score else []
    return "\n".join(lines) + "\n"


def _yaml_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # JSON escapes characters above U+FFFF in a way that YAML does not know


def _metric(kind: str, value: float, name: str) -> list[str]:
    return [f"    - type: {kind}", f"      value: {value:.6g}", f"      name: {_yaml_string(name)}"]
