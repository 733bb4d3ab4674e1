"""Tables of a model card: observations, actions and training."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

MAX_LISTED_LIMITS = 7  # of a part whose values have different limits


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown, with a line break at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def one_line(text: str) -> str:
    """`text` without line breaks. Names and units come from recordings: they may hold anything."""
    return " ".join(text.split())


def _cell(value: object) -> str:
    """`value` as text in a table: no HTML, and no end of the cell."""
    return html.escape(one_line(str(value)), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def shape_text(obs: Mapping[str, Any]) -> str:
    """The shapes that an observation may have."""
    return " or ".join(str(tuple(obs[key])) for key in ("shape", "recorded_shape") if key in obs)


def obs_table(obs: Mapping[str, Mapping[str, Any]]) -> str:
    """The observations of one step, `obs` in policy.json."""
    rows = [
        (f"`{key}`", shape_text(entry), entry["dtype"], entry["unit"], ", ".join(entry.get("names", ())))
        for key, entry in obs.items()
    ]
    return _without_empty_columns(("key", "shape", "type", "unit", "values"), rows)


def action_table(parts: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]) -> str:
    """The parts of an action, `action_parts` in policy.json, with the limits that the runtime clips them to."""
    rows, start = [], 0
    for part in parts:
        end = start + part["width"]
        positions = str(start) if part["width"] == 1 else f"{start} to {end - 1}"
        kind = "gripper" if part.get("gripper") else part.get("representation", "as recorded").replace("plain", "")
        kind = ", ".join(filter(None, (kind, part.get("rotation", "").replace("none", ""))))
        names = ", ".join(part.get("names", ()))
        rows.append((part["name"], positions, kind, part.get("unit", ""), _limits(limits, start, end), names))
        start = end
    return _without_empty_columns(("part", "index", "kind", "unit", "limits", "values"), rows)


def _limits(limits: Mapping[str, Any], start: int, end: int) -> str:
    if start in limits.get("rotations", ()):
        return "orthonormalized"
    if start in limits.get("quaternions", ()):
        return "normalized"
    ranges = [_range(*pair) for pair in zip(limits["low"][start:end], limits["high"][start:end], strict=True)]
    if len(set(ranges)) == 1:
        return ranges[0]
    return "; ".join(ranges) if len(ranges) <= MAX_LISTED_LIMITS else "of each value: `limits` in `policy.json`"


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "none" if low is high else f"up to {high:.4g}" if low is None else f"from {low:.4g}"
    return f"{low:.4g} to {high:.4g}"


def training_table(meta: Mapping[str, Any]) -> str:
    """What a checkpoint says about its training, `meta` in its config.json; without paths."""
    train, store, policy = (_section(meta, key) for key in ("train", "store", "policy"))
    rows: list[tuple[str, object]] = []
    if meta.get("published"):
        rows.append(("origin", "imported from a checkpoint of the published diffusion policy code"))
    if meta.get("init_from"):
        rows.append(("started from", "the weights of another policy"))
    if store:
        demos = f"{store['demos']:,} demonstrations, {store['steps']:,} steps" if store.get("demos") else ""
        recording = f"recording with SHA-256 `{store['sha256']}`" if store.get("sha256") else ""
        rows.append(("data", "; ".join(filter(None, (demos, recording)))))
    if train:
        rows.append(("preset", train.get("preset", "")))
        if train.get("val_ratio"):
            rows.append(("held out", f"{train['val_ratio']:.0%} of the demonstrations, for validation"))
    if meta.get("step"):
        batch = f" of batch size {train['batch_size']}" if train.get("batch_size") else ""
        rows.append(("steps", f"{meta['step']:,}{batch}"))
    if policy.get("obs"):
        rows.append(("observations", "images" if policy["obs"] == "image" else "states"))
    versions = store.get("versions") or {}
    if versions:
        render = [f"render profile {meta['render']}"] if meta.get("render") else []
        rows.append(("simulator", ", ".join([f"{name} {version}" for name, version in versions.items()] + render)))
    known = [row for row in rows if row[1]]
    return markdown_table(("", ""), known) if known else "The checkpoint does not say what it was trained on.\n"


def _section(meta: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object in `meta`; empty if it is missing, as in imported checkpoints and in those of older versions."""
    value = meta.get(key)
    return value if isinstance(value, dict) else {}


def _without_empty_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return markdown_table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])
