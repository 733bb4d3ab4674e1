"""Describes HDF5 files of demonstrations without converting them (`ddp inspect`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_cli.data.conversion_plan import ConversionPlan, ConvertOptions, plan_conversion
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.lint import describe_lint, lint_demos
from ddp_cli.errors import DataError

MAX_LISTED_NAMES = 5


def inspect_demo_file(demos: DemoFile) -> dict[str, Any]:
    """The contents of a file as JSON. Every demo is read: the ones with faults are listed in `bad`."""
    info = demos.info
    faults: dict[str, str] = {}
    ranges: dict[str, tuple[float, float]] = {}
    lengths, models = [], 0
    for name in demos.names:
        try:
            demo = demos.read(name)
        except DataError as e:
            faults[name] = e.message.removeprefix(f"'{demos.path}' {name}").lstrip(": ")
            continue
        lengths.append(len(demo.actions))
        models += bool(demo.xml)
        for key, array in demo.arrays.items():
            low, high = ranges.get(key, (np.inf, -np.inf))
            ranges[key] = (min(low, float(array.min())), max(high, float(array.max())))
    valid_names = [name for name in demos.names if name not in faults]
    convention, notes, plan = _plan_conversion(demos, faults)
    return {
        "kind": f"HDF5, written by {info.tool}",
        "environment": info.env_name,
        "task": demos.task.name,
        "robosuite": info.version or "unknown",
        "demos": len(demos.names),
        "lengths": [min(lengths), round(float(np.median(lengths))), max(lengths)] if lengths else [],
        "steps": sum(lengths),
        "filters": demos.filter_keys,
        "controller": " and ".join(dict.fromkeys(x.kind for x in info.controllers)) or "unknown",
        "actions": convention,
        "models": models,
        "policy_episodes": demos.policy_episodes(),
        "ranges": {key: list(pair) for key, pair in ranges.items()},
        "observations": demos.observation_shapes(valid_names[0]) if valid_names else {},
        "bad": faults,
        "obstacles": info.incompatibilities(),
        "notes": notes,
        "plan": plan,
        **lint_demos(demos, [name for name in demos.names if name not in faults]),
    }


def _plan_conversion(demos: DemoFile, faults: dict[str, str]) -> tuple[str, list[str], str]:
    """The action convention of a file, what `ddp convert` would note, and what it would do. Adds to `faults`."""
    declared = demos.info.actions
    if demos.task.name == "none" and not demos.info.incompatibilities():
        return declared, demos.notes, f"rejects this file: {demos.task_error}"
    try:
        plan = plan_conversion(demos, ConvertOptions(skip_bad=True))
    except DataError as e:
        reason = e.message.removeprefix(f"'{demos.path}'").removeprefix(" cannot be converted").lstrip(": ")
        return declared, demos.notes, f"rejects this file: {reason}"
    for name, fault in plan.skipped.items():
        faults.setdefault(name, fault.removeprefix(f"'{demos.path}' {name}").lstrip(": "))
    summary = _summarize_plan(plan, demos)
    if faults:
        invalid = "1 demonstration is" if len(faults) == 1 else f"{len(faults)} demonstrations are"
        summary = f"rejects this file: {invalid} invalid. With --skip-bad it {summary}"
    return plan.render_spec.source_actions, plan.notes, summary


def _summarize_plan(plan: ConversionPlan, demos: DemoFile) -> str:
    keys = (*demos.task.schema.cameras, *demos.task.vectors("state"))
    computed = [key for key in keys if key not in plan.recorded_keys]
    reasons = f" ({'; '.join(plan.computed.values())})" if plan.computed else ""
    condition = " if they agree with the simulator's" if demos.has_states else ""
    if not plan.recorded_keys:
        summary = f"renders all observations in the simulator{reasons}."
    elif computed:
        copied = ", ".join(plan.recorded_keys)
        summary = (
            f"copies {copied} from the file{condition}, and computes {', '.join(computed)} in the simulator{reasons}."
        )
    else:
        summary = f"copies the observations from the file{condition}."
    if not demos.has_states:
        summary += " The store will not be verified: the file holds no simulator states."
    return summary


def describe_demo_file(contents: dict[str, Any]) -> list[tuple[str, ...]]:
    """The result of `inspect_demo_file` as rows (name, value) for people."""
    ranges = [f"{key} {low:.3g} to {high:.3g}" for key, (low, high) in contents["ranges"].items()]
    shapes = [f"{key} {tuple(shape)}" for key, shape in contents["observations"].items()]
    steps = str(contents["steps"])
    if contents["lengths"]:
        shortest, median, longest = contents["lengths"]
        steps += f" (shortest {shortest}, median {median}, longest {longest})"
    rows = [
        ("kind", contents["kind"]),
        ("environment", f"{contents['environment']} (task {contents['task']})"),
        ("robosuite", contents["robosuite"]),
        ("demonstrations", f"{contents['demos']}, {contents['models']} with a recorded model"),
        ("steps", steps),
        ("filter keys", ", ".join(contents["filters"]) or "none"),
        ("controller", contents["controller"]),
        ("actions", contents["actions"]),
        ("ranges", "; ".join(ranges)),
        ("observations", "; ".join(shapes) or "none"),
    ]
    if outcomes := contents["policy_episodes"]:
        rows.insert(4, ("policy", f"acted in {len(outcomes)}, of which {sum(outcomes.values())} ended with success"))
    rows += [("invalid", line) for line in _group_faults(contents["bad"])]
    rows += [("incompatible", reason) for reason in contents["obstacles"]]
    rows += [("note", note) for note in contents["notes"]]
    return [*rows, ("ddp convert", contents["plan"]), *describe_lint(contents)]


def _group_faults(faults: dict[str, str]) -> list[str]:
    """A line per fault, with the demos that have it."""
    names_by_fault: dict[str, list[str]] = {}
    for name, fault in faults.items():
        names_by_fault.setdefault(fault, []).append(name)
    lines = []
    for fault, names in names_by_fault.items():
        more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
        lines.append(f"{', '.join(names[:MAX_LISTED_NAMES])}{more}: {fault}")
    return lines
