"""Plans a conversion: which demos are valid, and which of their observations are copied rather than rendered."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.observations import RenderSpec
from ddp_cli.data.store_copy import select_episodes
from ddp_cli.errors import DataError


@dataclass(frozen=True)
class ConvertOptions:
    """Options of a conversion, named as those of `ddp convert`.

    obs          image, or state: no images are rendered
    actions      delta or absolute. Delta actions are converted to absolute ones at the recorded states, not along a
                 replay that drifts
    render       render profile of images that were not recorded
    rerender     render images even where they were recorded
    filter_key   use only the demos of this filter key
    only         a slice of these demos, for example ":50"
    check        number of demos to replay in the simulator
    skip_bad     skip invalid demos instead of failing
    """

    obs: str = "image"
    actions: str = "delta"
    render: str = "fast"
    rerender: bool = False
    filter_key: str | None = None
    only: str | None = None
    check: int = 3
    skip_bad: bool = False
    zarr_format: int = 3


DEFAULT_OPTIONS = ConvertOptions()


@dataclass(frozen=True)
class ConversionPlan:
    """What the store will hold."""

    render_spec: RenderSpec
    demo_names: list[str]
    lengths: list[int]
    """Steps of each demo."""
    skipped: dict[str, str]
    """Names of the invalid demos -> fault."""
    recorded_keys: tuple[str, ...]
    """Observations that are copied from the file."""

    def with_recomputed(self, keys: set[str]) -> ConversionPlan:
        """The plan with the observations `keys` computed in the simulator instead of copied."""
        recorded_keys = tuple(key for key in self.recorded_keys if key not in keys)
        return dataclasses.replace(self, recorded_keys=recorded_keys)


def plan_conversion(demos: DemoFile, options: ConvertOptions) -> ConversionPlan:
    """Reads and validates every demo before any is rendered.

    DataError for the first invalid demo, unless `options.skip_bad`, and for a recording whose actions would have
    another effect in the simulator.
    """
    _check_compatible(demos, options)
    lengths, skipped = _validate_demos(demos, options)
    task = demos.task
    keys = () if options.rerender else (*task.images(options.obs), *task.vectors("state"))
    recorded_keys = tuple(key for key in keys if not demos.reason_unusable(key, list(lengths)))
    # Recorded images have robosuite's own rendering, so rollouts must render the same way.
    render = "full" if any(key in task.cameras for key in recorded_keys) else options.render
    render_spec = RenderSpec(options.obs, options.actions, demos.info.actions, render)
    return ConversionPlan(render_spec, list(lengths), list(lengths.values()), skipped, recorded_keys)


def _check_compatible(demos: DemoFile, options: ConvertOptions) -> None:
    incompatibilities = demos.info.incompatibilities()
    if incompatibilities:
        raise DataError(
            f"'{demos.path}' cannot be converted: {'; '.join(incompatibilities)}.",
            "A policy would act differently from these demos. Record with `ddp collect`, or with a Panda and OSC_POSE.",
        )
    if demos.info.actions == "absolute" and options.actions == "delta":
        raise DataError(
            f"'{demos.path}' holds absolute actions (control_delta is off).", "Add --actions absolute to keep them."
        )


def _validate_demos(demos: DemoFile, options: ConvertOptions) -> tuple[dict[str, int], dict[str, str]]:
    """Name -> steps of the valid demos, and name -> fault of the invalid ones."""
    lengths: dict[str, int] = {}
    skipped: dict[str, str] = {}
    name_by_hash: dict[str, str] = {}
    for i in select_episodes(len(demos.names), options.only, f"'{demos.path}'"):
        name = demos.names[i]
        try:
            demo = demos.read(name)
            content_hash = hashlib.sha256(demo.states.tobytes() + demo.actions.tobytes()).hexdigest()
            if content_hash in name_by_hash:
                raise DataError(f"'{demos.path}' {name} repeats {name_by_hash[content_hash]}.", "Remove one of them.")
            name_by_hash[content_hash] = name
            lengths[name] = len(demo.actions)
        except DataError as e:
            if not options.skip_bad:
                raise DataError(e.message, f"{e.hint} Or skip invalid demos with --skip-bad.".strip()) from e
            skipped[name] = e.message
    if not lengths:
        raise DataError(f"'{demos.path}': none of {len(skipped)} demos is valid.", next(iter(skipped.values())))
    return lengths, skipped
