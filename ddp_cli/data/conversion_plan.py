"""Plans a conversion: which demos are valid, and which of their observations are copied rather than rendered."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from ddp_cli.data.actions import to_store_actions
from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.episode_selection import select_episodes
from ddp_cli.data.invariants import looks_absolute, share_of_clipped_steps
from ddp_cli.data.lint_source import demo_source
from ddp_cli.data.observations import RenderSpec
from ddp_cli.data.recorded_observations import check_observations, read_observations, reason_unusable
from ddp_cli.data.trimming import Steps, all_steps, describe_trims, steps_in_motion
from ddp_cli.data.value_checks import Advice, ValueChecks
from ddp_cli.errors import DataError
from ddp_cli.tasks import RECORDED

ADVICE = Advice(
    order="If the values are in another order, write quaternions as x, y, z, w, and actions as position, axis-angle, "
    "gripper.",
    goals='If they are goal poses, say so in env_args: "control_delta": false.',
    offsets='If they are delta actions, say so in env_args: "control_delta": true.',
)


@dataclass(frozen=True)
class ConvertOptions:
    """Options of a conversion, named as those of `ddp convert`.

    obs          image, or state: no images are rendered
    actions      delta or absolute; None: as recorded. Delta actions are converted to absolute ones at the recorded
                 states, not along a replay that drifts
    render       render profile of images that were not recorded
    rerender     render images even where they were recorded
    filter_key   use only the demos of this filter key
    only         a slice of these demos, for example ":50"
    check        number of demos to replay in the simulator; 0 for none, nor a comparison of actions and motion
    skip_bad     skip invalid demos instead of failing
    trim_pauses  leave out the pauses of demos; whole demos are replayed
    """

    obs: str = "image"
    actions: str | None = None
    render: str = "fast"
    rerender: bool = False
    filter_key: str | None = None
    only: str | None = None
    check: int = 3
    skip_bad: bool = False
    zarr_format: int = 3
    trim_pauses: bool = False


DEFAULT_OPTIONS = ConvertOptions()


@dataclass(frozen=True)
class ConversionPlan:
    """What the store will hold."""

    render_spec: RenderSpec
    demo_names: list[str]
    steps: list[Steps]
    """The steps of each demo that are stored."""
    skipped: dict[str, str]
    """Names of the invalid demos -> fault."""
    recorded_keys: tuple[str, ...]
    """Observations that are copied from the file."""
    computed: dict[str, str]
    """Observations that are in the file but are computed in the simulator -> reason."""
    notes: list[str]
    """What was assumed or found."""

    @property
    def lengths(self) -> list[int]:
        """Stored steps of each demo."""
        return [len(steps) for steps in self.steps]

    def with_computed(self, keys: Collection[str], reason: str) -> ConversionPlan:
        """The plan with the observations `keys` computed in the simulator instead of copied."""
        recorded_keys = tuple(key for key in self.recorded_keys if key not in keys)
        computed = self.computed | {key: reason for key in self.recorded_keys if key in keys}
        return dataclasses.replace(self, recorded_keys=recorded_keys, computed=computed)

    def without_demos(self, faults: dict[str, str]) -> ConversionPlan:
        """The plan without the demos in `faults`, name -> fault."""
        remaining = [(n, steps) for n, steps in zip(self.demo_names, self.steps, strict=True) if n not in faults]
        return dataclasses.replace(
            self,
            demo_names=[name for name, _ in remaining],
            steps=[steps for _, steps in remaining],
            skipped=self.skipped | faults,
        )


def plan_conversion(demos: DemoFile, options: ConvertOptions) -> ConversionPlan:
    """Reads and validates every demo before any is rendered.

    DataError for the first invalid demo, unless `options.skip_bad`, and for a recording whose actions would have
    another effect in the simulator.
    """
    incompatibilities = demos.info.incompatibilities()
    if incompatibilities:
        raise DataError(
            f"'{demos.path}' cannot be converted: {'; '.join(incompatibilities)}.",
            "Record with `ddp collect`, or with a controller that robosuite 1.5 has.",
        )
    names = [demos.names[i] for i in select_episodes(len(demos.names), options.only, f"'{demos.path}'")]
    valid = _ValidDemos(demos, options)
    valid.read(names)
    task = demos.task
    keys = (*task.images(options.obs), *task.vectors("state"))
    candidates = () if options.rerender and demos.has_states else keys
    unusable = {key: reason_unusable(demos, key, list(valid.lengths)) for key in candidates}
    if not demos.has_states:
        _check_all_recorded(demos, unusable)
    recorded_keys = tuple(key for key in candidates if not unusable[key])
    valid.check_observations(recorded_keys)
    source_actions = valid.find_action_convention()
    _check_actions(demos, options, source_actions)
    if not demos.has_states:
        valid.check_values(tuple(task.vectors("state")), source_actions)
    # Recorded images have robosuite's own rendering, so rollouts must render the same way.
    render = "full" if any(key in task.schema.cameras for key in recorded_keys) else options.render
    render_spec = RenderSpec(options.obs, options.actions or source_actions, source_actions, render)
    recorded_shapes = demos.observation_shapes(next(iter(valid.lengths)))
    computed = {key: reason for key, reason in unusable.items() if reason and key in recorded_shapes}
    notes = [*demos.notes, *valid.notes]
    names, lengths = list(valid.lengths), list(valid.lengths.values())
    steps = all_steps(lengths)
    if options.trim_pauses:
        steps = steps_in_motion(demo_source(demos, names))
        notes.append(describe_trims(lengths, steps))
    return ConversionPlan(render_spec, names, steps, valid.skipped, recorded_keys, computed, notes)


def _check_all_recorded(demos: DemoFile, unusable: dict[str, str]) -> None:
    """DataError if an observation would have to be computed: that needs simulator states."""
    missing = [reason for reason in unusable.values() if reason]
    if missing:
        raise DataError(
            f"'{demos.path}' holds no simulator states, so what is not recorded cannot be computed: {missing[0]}.",
            "Train without images: --obs state. Or convert what was recorded, without a simulator: --keys KEY,..."
            if all(key in demos.task.schema.cameras for key, reason in unusable.items() if reason)
            else "Name a task that observes less (--task FILE.json), or convert what was recorded, without a "
            "simulator: --keys KEY,...",
        )


def _check_actions(demos: DemoFile, options: ConvertOptions, source_actions: str) -> None:
    convention = options.actions or source_actions
    if source_actions == "absolute" and convention == "delta":
        reason = "control_delta is off" if demos.info.actions == "absolute" else "their values are goal poses"
        raise DataError(f"'{demos.path}' holds absolute actions ({reason}).", "Leave --actions out to keep them.")
    if convention != source_actions and not demos.has_states:
        raise DataError(
            f"'{demos.path}' holds no simulator states, from which {convention} actions would be computed.",
            f"Leave --actions out, then convert the store: `ddp convert STORE --actions {convention} --out NEW`.",
        )


class _ValidDemos:
    """Reads demos: `lengths` of the valid ones (name -> steps), `skipped` ones (name -> fault), and `notes`."""

    def __init__(self, demos: DemoFile, options: ConvertOptions) -> None:
        self.demos, self.options = demos, options
        self.lengths: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self.notes: list[str] = []
        self._absolute_like: set[str] = set()
        self._clipped_shares: dict[str, float] = {}
        self._hashes: dict[str, str] = {}

    def read(self, names: Iterable[str]) -> None:
        """Reads the demos `names`."""
        padded = 0
        for name in names:
            try:
                demo = self.demos.read(name)
                self._check_new(demo)
            except DataError as e:
                self._skip(name, e)
                continue
            self.lengths[name] = len(demo.actions)
            padded += bool(self.demos.n_unused_rows(name))
            self._clipped_shares[name] = share_of_clipped_steps(demo.actions)
            if looks_absolute(demo.actions):
                self._absolute_like.add(name)
        if padded:
            self.notes.append(f"the arrays of {padded} demos are longer than num_samples: the rows behind are left out")
        self._check_any_valid()

    def check_observations(self, keys: tuple[str, ...]) -> None:
        """Reads the recorded observations `keys`; demos with invalid ones are invalid."""
        for name in list(self.lengths):
            try:
                check_observations(self.demos, name, keys)
            except DataError as e:
                del self.lengths[name]
                self._skip(name, e)
        self._check_any_valid()

    def find_action_convention(self) -> str:
        """The action convention of the recording: as declared, or absolute if the values can be nothing else."""
        if RECORDED in self.demos.task.conventions:
            return RECORDED
        declared = self.demos.info.actions
        if declared == "absolute":
            return declared
        absolute_like = [name for name in self.lengths if name in self._absolute_like]
        if len(absolute_like) == len(self.lengths):
            self.notes.append("the file declares delta actions, but their values are absolute goal poses")
            return "absolute"
        for name in absolute_like:
            del self.lengths[name]
            self._skip(
                name,
                DataError(
                    f"'{self.demos.path}' {name}: its actions are absolute goal poses, those of other demos are not.",
                    "Keep them in files of their own.",
                ),
            )
        clipped = [self._clipped_shares[name] for name in self.lengths]
        if any(clipped):
            steps = sum(share * n for share, n in zip(clipped, self.lengths.values(), strict=True))
            self.notes.append(
                f"{steps / sum(self.lengths.values()):.1%} of the steps have action values beyond [-1, 1]: they are "
                "clipped, as the controller does"
            )
        return "delta"

    def check_values(self, keys: tuple[str, ...], convention: str) -> None:
        """Checks the recorded vectors `keys` and the actions of demos that cannot be replayed, by what is known of
        every recording; demos whose values do not fit are invalid.
        """
        checks = ValueChecks(self.demos.task, convention, self.options.check > 0, ADVICE)
        for name in list(self.lengths):
            actions = self.demos.read(name).actions
            vectors = {key: np.asarray(x, np.float64) for key, x in read_observations(self.demos, name, keys).items()}
            stored = to_store_actions(actions, convention, self.demos.task.schema.action)
            try:
                checks.add({**vectors, "action": actions}, stored, f"'{self.demos.path}' {name}")
            except DataError as e:
                del self.lengths[name]
                self._skip(name, e)
        self._check_any_valid()
        checks.finish(f"'{self.demos.path}'")

    def _check_new(self, demo: Demo) -> None:
        if not self.demos.has_states:  # the same actions may have been replayed from other states
            return
        content_hash = hashlib.sha256(demo.states.tobytes() + demo.actions.tobytes()).hexdigest()
        if content_hash in self._hashes:
            raise DataError(
                f"'{self.demos.path}' {demo.name} repeats {self._hashes[content_hash]}.", "Remove one of them."
            )
        self._hashes[content_hash] = demo.name

    def _skip(self, name: str, error: DataError) -> None:
        if not self.options.skip_bad:
            raise DataError(error.message, f"{error.hint} Or skip invalid demos with --skip-bad.".strip()) from error
        self.skipped[name] = error.message

    def _check_any_valid(self) -> None:
        if not self.lengths:
            raise DataError(
                f"'{self.demos.path}': none of {len(self.skipped)} demos is valid.", next(iter(self.skipped.values()))
            )
