"""The schema of a step as the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

from ddp_cli.schema import ACTION, ActionPart, Normalization, Schema

MAX_NAMES = 16  # of the elements of a vector


def schema_rows(schema: Schema, action: Sequence[ActionPart]) -> list[list[str]]:
    """Rows of name, kind, shape, meaning, normalization and source of every camera, vector and part of the action."""
    rows = []
    for key, camera in schema.cameras.items():
        recorded = f"from {camera.recorded[0]}x{camera.recorded[1]}, {camera.fit}" if camera.recorded else ""
        rows.append([key, "camera", " x ".join(map(str, camera.shape)), recorded, "-1 to 1", camera.source])
    for key, vector in schema.vectors.items():
        meaning = _join(vector.unit, _names(vector.names))
        rows.append([key, "vector", str(vector.width), meaning, vector.normalization, vector.source])
    for part in action:
        rotation = "" if part.rotation == "none" else part.rotation
        gripper = "gripper" if part.gripper else ""
        meaning = _join(part.representation, rotation, gripper, part.unit, _names(part.names), _limits(part))
        name = ACTION if part.name == ACTION else f"{ACTION} {part.name}"
        rows.append([name, ACTION, str(part.width), meaning, part.normalization, schema.action_source])
    return rows


def normalizations(schema: Schema, action: Sequence[ActionPart]) -> dict[str, list[Normalization]]:
    """How each value of every vector and of the action is normalized."""
    columns = {key: [vector.normalization] * vector.width for key, vector in schema.vectors.items()}
    return {**columns, ACTION: [part.normalization for part in action for _ in range(part.width)]}


def _limits(part: ActionPart) -> str:
    if not part.low and not part.high:
        return ""
    low, high = ({*bounds} if bounds else {None} for bounds in (part.low, part.high))
    if len(low) > 1 or len(high) > 1:
        return "limits differ by value"
    ends = [f"{word} {bound:g}" for word, (bound,) in (("from", low), ("to", high)) if bound is not None]
    return " ".join(ends)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _join(*texts: str) -> str:
    return "; ".join(text for text in texts if text)
