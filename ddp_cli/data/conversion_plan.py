"""What is to be converted, and what that comes to: which demos, what of them is taken and what is looked at."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.observations import RenderSpec
from ddp_cli.data.store_copy import choose
from ddp_cli.errors import DataError


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert. `obs` "state" draws nothing; `actions` "absolute" stores the goals that recorded delta actions
    set, each computed at the recorded state, not along a replay that drifts. Pictures that were recorded are kept,
    unless `rerender`. `subset` names a filter of the file, `only` is a slice of its demos. `check`: how many demos
    are executed to see if they do what they did; `skip_bad` leaves out demos with faults.
    """

    obs: str = "image"
    actions: str = "delta"
    render: str = "fast"
    rerender: bool = False
    subset: str | None = None
    only: str | None = None
    check: int = 3
    skip_bad: bool = False
    zarr_format: int = 3


DEFAULT = ConvertOptions()


@dataclass(frozen=True)
class Plan:
    """What converting a file comes to."""

    how: RenderSpec
    names: list[str]
    lengths: list[int]
    left_out: dict[str, str]
    """Names of bad demos -> what is wrong with them."""
    recorded: tuple[str, ...]
    """Keys of the observations that are taken from the file."""

    def without(self, keys: set[str]) -> Plan:
        """The plan, with `keys` looked at anew."""
        return dataclasses.replace(self, recorded=tuple(key for key in self.recorded if key not in keys))


def plan_conversion(demos: DemoFile, wanted: ConvertOptions) -> Plan:
    """Reads every demo once, to find bad ones before an hour is spent on the good ones. DataError names the first,
    unless they are to be left out, and tells where the actions would mean something else here.
    """
    _check_meaning(demos, wanted)
    lengths, left_out = _good_and_bad(demos, wanted)
    task = demos.task
    keys = () if wanted.rerender else (*task.images(wanted.obs), *task.vectors("state"))
    recorded = tuple(key for key in keys if not demos.reason_unusable(key, list(lengths)))
    # Recorded pictures were drawn as robosuite draws, and so will be what a rollout sees.
    render = "full" if any(key in task.cameras for key in recorded) else wanted.render
    how = RenderSpec(wanted.obs, wanted.actions, demos.origin.actions, render)
    return Plan(how, list(lengths), list(lengths.values()), left_out, recorded)


def _check_meaning(demos: DemoFile, wanted: ConvertOptions) -> None:
    incompatibilities = demos.origin.incompatibilities()
    if incompatibilities:
        raise DataError(
            f"'{demos.path}' cannot be converted: {'; '.join(incompatibilities)}.",
            "A policy that learns it would be executed by other controllers. Record it with `ddp collect`, "
            "or with OSC_POSE.",
        )
    if demos.origin.actions == "absolute" and wanted.actions == "delta":
        raise DataError(
            f"'{demos.path}' holds absolute actions (control_delta is off).", "Add --actions absolute to keep them."
        )


def _good_and_bad(demos: DemoFile, wanted: ConvertOptions) -> tuple[dict[str, int], dict[str, str]]:
    """Name -> steps of the good demos, and name -> fault of the bad ones."""
    lengths: dict[str, int] = {}
    left_out: dict[str, str] = {}
    seen: dict[str, str] = {}
    for i in choose(len(demos.names), wanted.only, f"'{demos.path}'"):
        name = demos.names[i]
        try:
            demo = demos.read(name)
            content = hashlib.sha256(demo.states.tobytes() + demo.actions.tobytes()).hexdigest()
            if content in seen:
                raise DataError(f"'{demos.path}' {name} repeats {seen[content]}.", "Remove one of them.")
            seen[content] = name
            lengths[name] = len(demo.actions)
        except DataError as e:
            if not wanted.skip_bad:
                raise DataError(e.message, f"{e.hint} Or leave out demos with faults: --skip-bad.".strip()) from e
            left_out[name] = e.message
    if not lengths:
        raise DataError(f"'{demos.path}': none of {len(left_out)} demos can be used.", next(iter(left_out.values())))
    return lengths, left_out
