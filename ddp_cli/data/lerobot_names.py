"""The order of the values of a LeRobot feature, read from the names that info.json gives them.

There is no standard for these names. Those of `ddp` itself (`robot0_eef_pos_0`) are known, and the usual ones for the
pose of an end effector and a gripper: `x`, `ee.x`, `position_x`, `qw`, `quat_w`, `gripper_left`, `axis_angle1`, ...
Names that say nothing (`motor_0`, `motor_1`; a single `state`) count as no names.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ddp_cli.errors import DataError
from ddp_cli.robots import ARM_WIDTHS

Aliases = frozenset[str]

FILLERS = {
    "robot", "panda", "franka", "arm", "ee", "eef", "end", "effector", "endeffector", "tcp", "tool", "cartesian",
    "pose", "state", "observation", "obs", "action", "actions", "axis",
}  # fmt: skip
"""Words that say nothing about the order."""
DELTA_WORDS = {"delta", "d", "rel", "relative"}
ABSOLUTE_WORDS = {"goal", "target", "abs", "absolute", "desired"}
PLACEHOLDER_STEMS = {"", "motor", "motors", "dim", "value", "feature", "element", "s", "a", "v"}
SYNONYMS = {
    "position": "pos", "translation": "pos", "trans": "pos", "xyz": "pos",
    "quaternion": "quat", "orientation": "quat", "ori": "quat",
    "rotation": "rot", "rotvec": "rot", "angle": "rot", "axangle": "rot", "aa": "rot",
    "grip": "gripper", "grasp": "gripper", "hand": "gripper", "fingers": "finger",
    "l": "left", "r": "right", "cmd": "", "command": "", "qpos": "",
}  # fmt: skip


class _Name(NamedTuple):
    """A name in normal form, and the action convention that its words imply (None if they imply none)."""

    text: str
    convention: str | None


def order_of_observables(names: tuple[str, ...] | None, widths: dict[str, int], location: str) -> list[int] | None:
    """Positions in the feature of the values of the observables `widths` (key -> width), in their order.

    None if they are in this order already, or have no names. DataError, beginning with `location`, if the names are of
    other values.
    """
    own_names = observable_names(widths)
    if names is not None and len(set(names)) == len(names) and set(names) == set(own_names):
        order = [names.index(name) for name in own_names]
        return None if order == list(range(len(order))) else order
    elements = [_observable_aliases(key, i) for key, width in widths.items() for i in range(width)]
    return _order(names, elements, [f"{key} ({width})" for key, width in widths.items()], location)


def order_of_action(names: tuple[str, ...] | None, convention: str, width: int, location: str) -> list[int] | None:
    """As `order_of_observables`, for the values of an action of `width` in `convention`.

    DataError also if the names say that the actions have the other convention.
    """
    implied = {_normalize(name).convention for name in names or ()} - {None}
    if implied and implied != {convention}:
        raise DataError(
            f"{location} has names of {' and '.join(sorted(map(str, implied)))} actions ({shorten(names or ())}), "
            f"not of {convention} ones.",
            f"Choose --actions {' or --actions '.join(ARM_WIDTHS)} by what they are, or correct the names in "
            "info.json.",
        )
    position = [_axis_aliases("pos", axis, i) | {axis} for i, axis in enumerate("xyz")]
    if width == ARM_WIDTHS["delta"]:
        rotation = [_axis_aliases("rot", a, i) | {f"r{a}", f"r_{a}", f"w{a}", f"w_{a}"} for i, a in enumerate("xyz")]
    else:
        rotation = [frozenset({f"rot_6_d_{i}", f"r_6_d_{i}", f"rot_6_{i}", f"6_d_{i}"}) for i in range(6)]
    gripper = frozenset({"gripper", "gripper_pos", "gripper_0", "gripper_1"})
    count = "axis-angle x, y, z" if width == ARM_WIDTHS["delta"] else "rotation-6d 0 to 5"
    return _order(names, [*position, *rotation, gripper], ["position x, y, z", count, "gripper"], location)


def observable_names(widths: dict[str, int]) -> list[str]:
    """The names that `ddp` gives the values of the observables `widths` (key -> width)."""
    return [f"{key}_{i}" for key, width in widths.items() for i in range(width)]


def shorten(names: tuple[str, ...], count: int = 9) -> str:
    """The first `count` of `names`, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _order(
    names: tuple[str, ...] | None, elements: list[Aliases], expected: list[str], location: str
) -> list[int] | None:
    if names is None or _are_placeholders(names, len(elements)):
        return None
    if len(names) != len(elements):
        raise DataError(
            f"{location} has {len(names)} names ({shorten(names)}) for {len(elements)} values.",
            "Correct the names in meta/info.json, or remove them.",
        )
    texts = [_normalize(name).text for name in names]
    order = _match(texts, elements) or _match([_decrement(text) for text in texts], elements)
    if order is None:
        unknown = tuple(name for name, text in zip(names, texts, strict=True) if not any(text in e for e in elements))
        fault = f"the names {shorten(unknown)}" if unknown else f"the names {shorten(names)}, several of the same value"
        raise DataError(
            f"{location} has {fault}; expected those of {', '.join(expected)}.",
            "If the values are these, correct the names in meta/info.json; otherwise describe the sensors in a task "
            "file (--task).",
        )
    return None if order == list(range(len(order))) else order


def _match(texts: list[str], elements: list[Aliases]) -> list[int] | None:
    """For each of `elements` the position of its name; a name that several elements have is theirs in turn."""
    order: list[int] = []
    for aliases in elements:
        position = next((i for i, text in enumerate(texts) if text in aliases and i not in order), None)
        if position is None:
            return None
        order.append(position)
    return order


def _normalize(name: str) -> _Name:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().replace("robot0", "robot")
    words = [SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+|\d+", spaced)]
    # "dx", "drx": a change of x, of the rotation about x.
    words = [part for word in words for part in (("d", word[1:]) if re.fullmatch(r"dr?[xyz]", word) else (word,))]
    convention = None
    if not DELTA_WORDS.isdisjoint(words) and "6" not in words:
        convention = "delta"
    elif not ABSOLUTE_WORDS.isdisjoint(words):
        convention = "absolute"
    dropped = FILLERS | ABSOLUTE_WORDS | (DELTA_WORDS - {"d"} if "6" in words else DELTA_WORDS)
    kept = [word for word in words if word and word not in dropped]
    if len(kept) == 2 and kept[0] in "xyz" and kept[1] in ("pos", "quat", "rot"):  # "x.pos"
        kept.reverse()
    return _Name("_".join(kept), convention)


def _observable_aliases(key: str, i: int) -> Aliases:
    aliases = {_normalize(f"{key}_{i}").text}
    axes = "xyzw"
    if key.endswith("_pos") and i < 3:
        aliases.add(_normalize(f"{key}_{axes[i]}").text)
    if key.endswith("_quat") and i < 4:
        aliases |= {_normalize(f"{key}_{prefix}{axes[i]}").text for prefix in ("", "q")}
    if key == "robot0_eef_pos":
        aliases |= {axes[i], f"p_{axes[i]}", f"p{axes[i]}"}
    if key == "robot0_eef_quat":
        aliases |= {f"q{axes[i]}", f"q_{axes[i]}", f"rot_{axes[i]}", f"rot_q{axes[i]}"}
    if key == "robot0_gripper_qpos":
        side = ("left", "right")[i] if i < 2 else ""
        words = ("gripper", "finger", "gripper_finger")
        aliases |= {"gripper", "gripper_pos"}
        aliases |= {
            f"{word}{joint}_{n}" for word in words for joint in ("", "_joint", "_pos") for n in (i, side) if n != ""
        }
        aliases |= {f"{side}_{word}" for word in words if side} | {f"{side}_{word}_joint" for word in words if side}
    return frozenset(aliases)


def _axis_aliases(word: str, axis: str, i: int) -> Aliases:
    return frozenset({f"{word}_{axis}", f"{word}_{i}"})


def _decrement(text: str) -> str:
    """Names may count from 1."""
    return re.sub(r"_(\d+)$", lambda match: f"_{int(match[1]) - 1}", text)


def _are_placeholders(names: tuple[str, ...], width: int) -> bool:
    """Whether `names` are numbers in order (`motor_0`, `motor_1`, ...), or a single one for many values."""
    if len(names) == 1 and width > 1:
        return True
    matches = [re.fullmatch(r"(.*?)[_.\[]?(\d+)\]?", name) for name in names]
    if not all(matches) or len(names) != width:
        return False
    stems, numbers = {match[1] for match in matches if match}, [int(match[2]) for match in matches if match]
    is_counted = any(numbers == list(range(first, first + width)) for first in (0, 1))
    words = {word for stem in stems for word in re.findall(r"[a-z]+", stem.lower())}
    return is_counted and len(stems) == 1 and words <= PLACEHOLDER_STEMS | FILLERS
